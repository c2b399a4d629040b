"""One self-contained page, and files, on the arms of a comparison."""
import base64
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined

from mmpsw.compare import differences, notes, plots, table
from mmpsw.compare.comparison import Comparison
from mmpsw.compare.zoo_results import Published

__all__ = ['FILES', 'PAGE', 'write_report']

PAGE = 'index.html'
FILES = ('table.md', 'table.csv', 'points.csv', 'curves.png', 'curves.svg')
_ADDED = ('equal_time.png', 'step_seconds.csv')  # by tools/analysis
_TEMPLATE = Path(__file__).with_name('report.html')
# In the page's head: what tells an earlier report from a user's own page.
_GENERATOR = '<meta name="generator" content="mmpsw compare report">'
_TYPES = {'.csv': 'text/csv', '.svg': 'image/svg+xml'}


def write_report(c: Comparison,
                 out_dir: Path,
                 title: str = 'Comparison',
                 remarks: Sequence[str] = (),
                 zoo: Published | None = None,
                 commands: Sequence[str] = ()) -> pd.DataFrame:
    """Write a page, and its table and curves as files.

    Args:
        c: What is compared.
        out_dir: A folder that is new, empty, or holds an earlier report.
        title: Above it all.
        remarks: The sentences of :func:`mmpsw.compare.notes.notes`.
        zoo: What the model zoo publishes for the baseline.
        commands: How to do all of it again.

    Returns:
        The numbers, as in ``table.csv``.

    Raises:
        ValueError: If ``out_dir`` holds anything else.
    """
    _check_out_dir(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    page = out_dir / PAGE
    if not page.exists():  # marks the folder, should this be interrupted
        page.write_text(_GENERATOR, encoding='utf-8')
    numbers = table.numbers(c, zoo.value if zoo else None)
    numbers.to_csv(out_dir / 'table.csv', index=False)
    c.points[['arm', 'seed', 'step', 'value']].astype(
        dict(seed=object)).fillna(dict(seed='')).to_csv(
            out_dir / 'points.csv', index=False, na_rep='nan')
    (out_dir / 'table.md').write_text(table.as_markdown(c, numbers) + '\n',
                                      encoding='utf-8')
    for name in ('curves.png', 'curves.svg'):
        plots.save(plots.plot_curves(c, title), out_dir / name)
    html = _render(c, numbers, files={
        name: _data_uri(out_dir / name) for name in FILES
        if Path(name).suffix in _TYPES
    }, title=title, remarks=remarks, zoo=zoo, commands=commands)
    page.write_text(html, encoding='utf-8')
    return numbers


def _check_out_dir(out_dir: Path) -> None:
    """Refuse a folder with anything but an earlier report in it."""
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise ValueError(f"the report cannot be written to '{out_dir}', "
                         'because that is a file; give a folder')
    found = sorted(path.name for path in out_dir.iterdir())
    others = sorted({*found} - {PAGE, *FILES, *_ADDED})
    page, csv = out_dir / PAGE, out_dir / 'table.csv'
    is_report = page.is_file() and _GENERATOR in page.read_text(
        encoding='utf-8', errors='replace')
    is_report |= csv.is_file() and csv.read_text(
        encoding='utf-8', errors='replace').startswith('arm,seeds,metric,')
    if found and (others or not is_report):
        raise ValueError(
            f"the report cannot be written to '{out_dir}', because something "
            f'else than an earlier report is there ({[*others, *found][0]}); '
            'give another folder with --out')


def _render(c: Comparison, numbers: pd.DataFrame, **others) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding='utf-8'))
    kinds = {(arm, f'{key} - baseline'): kind for key in table.KEYS
             for value, kind in ((1, 'better'), (-1, 'worse'))
             for arm in numbers.arm[table.verdicts(numbers, key) == value]}
    return template.render(
        c=c, kinds=kinds, tables=table.shown(c, numbers),
        explanations=table.explain(c), environment=notes.environment(c.first),
        differences={
            arm: differences.changed_lines(
                c.of_arm(arm).source.iloc[0].config, c.first.config)
            for arm in c.arms if arm != c.baseline
        }, **others)


def _data_uri(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f'data:{_TYPES[path.suffix]};base64,{content}'

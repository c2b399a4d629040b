"""One self-contained page, and files, on the arms of a comparison."""
import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined

from mmpsw.compare import differences, notes, plots, table
from mmpsw.compare.comparison import Comparison
from mmpsw.compare.zoo_results import Published

__all__ = ['FILES', 'PAGE', 'write_report']

PAGE = 'index.html'
FILES = ('table.md', table.FILE, 'curves.png', 'differences.png')
_KEYS = ('final', 'area')  # whose differences are drawn
_TEMPLATE = Path(__file__).with_name('report.html')
# In the page's head: what tells an earlier report from a user's own page.
_GENERATOR = '<meta name="generator" content="mmpsw compare report">'


def write_report(found: pd.DataFrame,
                 baseline: str,
                 out_dir: Path,
                 title: str = 'Comparison',
                 remarks: Sequence[str] = (),
                 zoo: Published | None = None,
                 commands: Sequence[str] = (),
                 pictures: Mapping[str, Sequence[Path]] | None = None,
                 c: Comparison | None = None) -> pd.DataFrame:
    """Write a page, and its table and pictures as files.

    Args:
        found: The :func:`mmpsw.compare.table.long` of one comparison.
        baseline: The arm that the others are compared with.
        out_dir: A folder that is new, empty, or holds an earlier report.
        title: Above it all.
        remarks: The sentences of :func:`mmpsw.compare.notes.notes`.
        zoo: What the model zoo publishes for the baseline.
        commands: How to do all of it again.
        pictures: More of them, by what they show: for a wide page, and for
            a narrow one.
        c: The runs, where they are at hand, for their configs.

    Returns:
        The :func:`mmpsw.compare.table.statistics`.

    Raises:
        ValueError: If ``out_dir`` holds anything else.
    """
    _check_out_dir(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    page = out_dir / PAGE
    if not page.exists():  # marks the folder, should this be interrupted
        page.write_text(_GENERATOR, encoding='utf-8')
    numbers = table.statistics(found, baseline)
    found.drop(columns='comparison').to_csv(
        out_dir / table.FILE, index=False, lineterminator='\n')
    frame = table.shown(numbers, found, baseline, zoo and zoo.value)
    (out_dir / 'table.md').write_text(table.as_markdown(frame) + '\n',
                                      encoding='utf-8')
    drawn = []
    if numbers.difference.notna().any():
        drawn.append(('differences', lambda width: plots.plot_differences(
            numbers, baseline, _KEYS, width)))
    drawn.append(('curves', lambda width: plots.plot_curves(
        found, baseline, width=width)))
    for name, plot in drawn:
        plots.save(plot(plots.WIDE), out_dir / f'{name}.png')
    page.write_text(_render(
        found, numbers, baseline, c, title=title, remarks=remarks, zoo=zoo,
        commands=commands, frame=frame,
        plots=[(name, *(_data_uri(plots.drawn(plot(width), 'svg'), 'svg+xml')
                        for width in (plots.WIDE, plots.NARROW)))
               for name, plot in drawn],
        csv=_data_uri((out_dir / table.FILE).read_bytes(), 'csv', 'text'),
        pictures=[(text, *(_data_uri(path.read_bytes(), 'png')
                           for path in paths))
                  for text, paths in (pictures or {}).items()]),
                    encoding='utf-8')
    return numbers


def _check_out_dir(out_dir: Path) -> None:
    """Refuse a folder with anything but an earlier report in it."""
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"the report cannot be written to '{out_dir}', "
                         'because that is a file; give a folder')
    files = sorted(out_dir.iterdir()) if out_dir.exists() else []
    others = [path for path in files if path.name not in (PAGE, *FILES)]
    is_report = any(mark in (out_dir / name).read_text(
        encoding='utf-8', errors='replace') for name, mark in (
            (PAGE, _GENERATOR), (table.FILE, 'arm,run,seed,'))
        if (out_dir / name).is_file())
    if files and (others or not is_report):
        raise ValueError(
            f"the report cannot be written to '{out_dir}', because something "
            f'else than an earlier report is there '
            f'({[*others, *files][0].name}); give another folder with --out')


def _render(found: pd.DataFrame, numbers: pd.DataFrame, baseline: str,
            c: Comparison | None, **others) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding='utf-8'))
    kinds = {(row.arm, f'{row.key} - {baseline}'):
             'better' if row.verdict > 0 else 'worse'
             for row in numbers[numbers.verdict.abs() == 1].itertuples()}
    return template.render(
        arms=list(found.arm.unique()), baseline=baseline, kinds=kinds,
        finding=table.finding(numbers, baseline),
        explanations=table.explain(numbers, found, baseline),
        intervals=bool((numbers.pairs > 1).any()),
        runs=c.runs if c else None, unit=found.unit.iloc[0],
        environment=notes.environment(c.first) if c else None,
        differences={arm: _change(c, arm) for arm in c.arms
                     if arm != baseline} if c else {}, **others)


def _change(c: Comparison, arm: str) -> tuple[str, list[str]]:
    """How an arm's config differs, in words and lines."""
    for plan in c.plans.values():
        if arm in plan.get('passengers', ()):
            settings = plan.get('settings', {}).get(arm, '')
            return (": evaluated beside the baseline's run",
                    [f'+{line}' for line in settings.splitlines() if line])
    lines = differences.changed_lines(c.of_arm(arm).source.iloc[0].config,
                                      c.first.config)
    return '' if lines else ': nothing', lines


def _data_uri(content: bytes, kind: str, group: str = 'image') -> str:
    return (f'data:{group}/{kind};base64,'
            f'{base64.b64encode(content).decode()}')

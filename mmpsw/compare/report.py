"""One self-contained page, and files, on the arms of a comparison."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from mmpsw.compare import differences, notes, plots, table
from mmpsw.compare.runs import Arm, Run
from mmpsw.compare.zoo_results import Published

PAGE = 'index.html'
_FILES = ('table.md', 'table.csv', 'points.csv', 'curves.png', 'curves.svg')
_TEMPLATE = Path(__file__).with_name('report.html')
# In the page's head: what tells an earlier report from a user's own page.
_GENERATOR = '<meta name="generator" content="mmpsw compare report">'


@dataclass(frozen=True)
class _Cell:
    """A number in the page's table, its spread, and how to show them."""

    text: str
    spread: str = ''
    kind: str = ''


def write_report(arms: Sequence[Arm],
                 baseline: str,
                 out_dir: str | Path,
                 title: str = 'Comparison',
                 remarks: Sequence[str] = (),
                 zoo: Published | None = None,
                 commands: Sequence[str] = ()) -> Path:
    """Write a page, and its table and curves as files.

    Args:
        arms: What is compared; those without runs are passed by.
        baseline: The name of the arm that the others are compared with.
        out_dir: A folder that is new, empty, or holds an earlier report.
        title: Above it all.
        remarks: The sentences of :func:`mmpsw.compare.notes.notes`.
        zoo: What the model zoo publishes for the baseline.
        commands: How to do all of it again.

    Returns:
        The page's path; ``table.md``, ``table.csv``, ``points.csv``,
        ``curves.png`` and ``curves.svg`` are beside it.

    Raises:
        ValueError: If ``out_dir`` holds anything else, or if the arms cannot
            be compared.
    """
    out_dir = Path(out_dir)
    check_out_dir(out_dir)
    arms = [arm for arm in arms if arm.runs]
    value = zoo.value if zoo else None
    markdown = table.as_markdown(arms, baseline, value)
    out_dir.mkdir(parents=True, exist_ok=True)
    page = out_dir / PAGE
    if not page.exists():  # marks the folder, should this be interrupted
        page.write_text(_GENERATOR, encoding='utf-8')
    (out_dir / 'table.md').write_text(markdown + '\n', encoding='utf-8')
    table.write_csv(arms, baseline, out_dir / 'table.csv', value)
    table.write_points(arms, out_dir / 'points.csv')
    drawn = _baseline_first(arms, baseline)
    for name in ('curves.png', 'curves.svg'):
        plots.plot_curves(drawn, out_dir / name, title, curves_note(arms))
    page.write_text(
        _render(arms, baseline, out_dir, title, remarks, zoo, commands),
        encoding='utf-8')
    return page


def check_out_dir(out_dir: Path) -> None:
    """Refuse a folder with anything but an earlier report in it.

    Raises:
        ValueError: If it is one, or a file.
    """
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise ValueError(
            f"The report cannot be written to '{out_dir}', because that is a "
            'file. Name a folder.')
    found = sorted(path.name for path in out_dir.iterdir())
    others = set(found) - {PAGE, *_FILES}
    page = out_dir / PAGE
    is_report = page.is_file() and _GENERATOR in page.read_text(
        encoding='utf-8', errors='replace')
    if found and (others or not is_report):
        named = sorted(others)[0] if others else found[0]
        raise ValueError(
            f"The report cannot be written to '{out_dir}', because something "
            f'else than an earlier report is there ({named}). Name another '
            'folder with --out.')


def curves_note(arms: Sequence[Arm]) -> str:
    """What the lines and bands of a picture of these arms show."""
    counts = {len(arm.runs) for arm in arms}
    if counts == {1}:
        return 'one run an arm'
    number = (f'{counts.pop()} seeds' if len(counts) == 1
              else f'{min(counts)} to {max(counts)} seeds')
    return f'mean and standard deviation over {number}'


def _baseline_first(arms: Sequence[Arm], baseline: str) -> list[Arm]:
    return sorted(arms, key=lambda arm: arm.name != baseline)


def _render(arms: Sequence[Arm], baseline: str, out_dir: Path, title: str,
            remarks: Sequence[str], zoo: Published | None,
            commands: Sequence[str]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding='utf-8'))
    other = next(arm for arm in arms if arm.name == baseline)
    rows = table.make_rows(arms, baseline, zoo.value if zoo else None)
    columns = table.make_columns(arms, rows)
    run = other.runs[0]
    return template.render(
        title=title,
        run=run,
        baseline=baseline,
        arm_names=[arm.name for arm in arms],
        note=curves_note(arms),
        pictures=_pictures(_baseline_first(arms, baseline)),
        tables=[_page_table(rows, group, run.higher_is_better)
                for group in table.split_columns(rows, columns)],
        has_differences=any(column.difference for column in columns),
        explanations=[_typeset(line) for line in
                      table.explain(arms, baseline)],
        remarks=[_typeset(line) for line in remarks],
        zoo=zoo,
        differences=_differences(arms, other),
        environment=notes.environment(run),
        commands=commands,
        runs=[_run_line(arm, run) for arm in arms for run in arm.runs],
        downloads={name: _data_uri('text/csv', (out_dir / name).read_bytes())
                   for name in ('table.csv', 'points.csv')})


def _pictures(arms: Sequence[Arm]) -> dict[str, str]:
    """The curves for wide and narrow, light and dark screens."""
    legend_rows = math.ceil(len(arms) / 2)
    sizes = {'wide': plots.WIDE,
             'narrow': (4.2, 3.5 + 0.22 * legend_rows)}
    themes = {'light': plots.LIGHT, 'dark': plots.DARK}
    return {
        f'{size}_{theme}': _picture(arms, sizes[size], themes[theme])
        for size in sizes for theme in themes
    }


def _picture(arms: Sequence[Arm], size: tuple[float, float],
             theme: plots.Theme) -> str:
    out = io.BytesIO()
    plots.plot_curves(arms, out, theme=theme, size=size, file_format='svg')
    return _data_uri('image/svg+xml', out.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'


def _page_table(rows: Sequence[table.Row], columns: Sequence[table.Column],
                higher: bool) -> dict:
    return dict(
        titles=[_typeset(column.title) for column in columns],
        rows=[[_cell(column, row, higher) for column in columns]
              for row in rows])


def _cell(column: table.Column, row: table.Row, higher: bool) -> _Cell:
    if column.title == 'arm':
        return _Cell(row.arm)
    text, _, spread = column.cell(row).partition(' +- ')
    return _Cell(_typeset(text), spread, _kind(column, row, higher))


def _kind(column: table.Column, row: table.Row, higher: bool) -> str:
    """'better' or 'worse' where a difference's interval excludes zero."""
    difference = row.differences.get(column.difference)
    if difference is None or difference.half_width is None:
        return ''
    if not abs(difference.mean) > difference.half_width:
        return ''
    return 'better' if (difference.mean > 0) == higher else 'worse'


def _typeset(text: str) -> str:
    """What a terminal shows in ASCII."""
    if text == '-':
        return '–'
    if text[:1] == '-' and text[1:2].isdigit():
        text = '−' + text[1:]
    return text.replace('+-', '±').replace(' - ', ' − ')


def _differences(arms: Sequence[Arm],
                 baseline: Arm) -> dict[str, list[tuple[str, str]]]:
    """The diff of each other arm's config, its lines with their kind."""
    theirs = baseline.runs[0].config_path
    found = {}
    for arm in arms:
        ours = arm.runs[0].config_path
        if arm is baseline or ours is None or theirs is None:
            continue
        diff = differences.unified_diff(ours, theirs, arm.name, baseline.name)
        found[arm.name] = [(_line_kind(line), line)
                           for line in diff.splitlines()]
    return found


def _line_kind(line: str) -> str:
    if line.startswith(('---', '+++', '@@')):
        return 'place'
    return {'+': 'added', '-': 'removed'}.get(line[:1], 'same')


def _run_line(arm: Arm, run: Run) -> dict:
    path = run.config_path
    return dict(
        arm=arm.name,
        seed='–' if run.seed is None else run.seed,
        folder='–' if path is None else str(path.parents[2]),
        last=run.steps[-1],
        end='?' if run.max_steps is None else run.max_steps)

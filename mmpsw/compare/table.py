"""Arms side by side: as plain text, as Markdown, and as numbers."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from mmpsw import results
from mmpsw.compare import metrics
from mmpsw.compare.metrics import Difference, Estimate, Match
from mmpsw.compare.runs import Arm, Run, check_comparable, paired_runs

# Headers with a rule below them; ASCII, so that every terminal and log has it.
_PLAIN = box.Box(
    '    \n    \n -- \n    \n    \n    \n    \n    \n', ascii=True)
_TEXT_WIDTH = 120


@dataclass(frozen=True)
class Row:
    """What is said about an arm; None where nothing can be said.

    Attributes:
        arm: Its name.
        n: The number of its runs.
        values: best, final, area and drop over its seeds.
        differences: The same against the baseline, over the seeds that both
            have; None for the baseline itself.
        match: When it reaches the baseline's best.
        time: Seconds per iteration.
        time_ratio: By the baseline's.
        memory: Peak memory in MB.
        memory_ratio: By the baseline's.
        zoo: The published value, for the baseline.
    """

    arm: str
    n: int
    values: dict[str, Estimate | None]
    differences: dict[str, Difference | None]
    match: Match | None
    time: Estimate | None
    time_ratio: float | None
    memory: Estimate | None
    memory_ratio: float | None
    zoo: float | None = None


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        title: Its header.
        cell: What it says about a row.
        against: Whether it compares with the baseline.
        difference: The key of ``Row.differences`` that it shows, if any.
    """

    title: str
    cell: Callable[[Row], str]
    against: bool = False
    difference: str | None = None


def as_text(arms: Sequence[Arm], baseline: str,
            zoo: float | None = None) -> str:
    """An aligned table without colours or control codes.

    Where it would be wider than 120 columns it is two tables: the arms' own
    numbers, and those against the baseline.

    Args:
        arms: The rows, in this order.
        baseline: The name of the arm that the others are compared with.
        zoo: The value that the model zoo publishes for the baseline.

    Raises:
        ValueError: If the arms are not comparable or ``baseline`` is none.
    """
    rows = make_rows(arms, baseline, zoo)
    own, *against = split_columns(rows, make_columns(arms, rows))
    text = _render(rows, own, _PLAIN)
    for columns in against:
        text += (f'\n\nagainst {baseline}:\n\n'
                 f'{_render(rows, columns, _PLAIN)}')
    return text


def as_markdown(arms: Sequence[Arm], baseline: str,
                zoo: float | None = None) -> str:
    """The same as one table in Markdown; arguments as in :func:`as_text`."""
    rows = make_rows(arms, baseline, zoo)
    return _render(rows, make_columns(arms, rows), box.MARKDOWN)


def write_csv(arms: Sequence[Arm], baseline: str, path: str | Path,
              zoo: float | None = None) -> Path:
    """Write the table's numbers, one row per arm.

    best, final, area and drop have the columns ``_mean``, ``_std`` (over the
    seeds), ``_difference``, ``_half_width`` (of the 95 % interval) and ``_n``
    (pairs of seeds). Cells are empty where there is no number. Arguments as
    in :func:`as_text`.

    Returns:
        ``path``.
    """
    run = arms[0].runs[0]
    about = dict(metric=run.metric, unit=run.unit,
                 better='higher' if run.higher_is_better else 'lower')
    rows = [_numbers(row, about) for row in make_rows(arms, baseline, zoo)]
    return results.write_csv(path, list(rows[0]),
                             [row.values() for row in rows])


def write_points(arms: Sequence[Arm], path: str | Path) -> Path:
    """Write every validation: the columns arm, seed, step and value.

    Returns:
        ``path``.
    """
    rows = [
        dict(arm=arm.name, seed=run.seed, step=step, value=value)
        for arm in arms for run in arm.runs for step, value in run.points
    ]
    return results.write_csv(path, list(rows[0]),
                             [row.values() for row in rows])


def explain(arms: Sequence[Arm], baseline: str) -> list[str]:
    """A sentence on each kind of column, for those who see the table."""
    run = arms[0].runs[0]
    better = 'higher' if run.higher_is_better else 'lower'
    unit = run.unit
    lines = [
        f'{run.metric}: {better} is better. best: the best validation; '
        'final: the last one; area: the mean over all '
        f'{"epochs" if unit == "epoch" else "validations"}; drop: what is '
        'lost on average from one to the next.',
        f'{unit}s to match: the first {unit} at which an arm, in the mean over'
        f' its seeds, is as good as {baseline} ever is, and in parentheses '
        'that by the one at which the baseline itself is.',
    ]
    if any(len(arm.runs) > 1 for arm in arms):
        lines.append(
            'a +- b: mean and standard deviation over the seeds. Differences: '
            f'arm - {baseline}, the mean over the seeds that both have, and '
            'half the width of its 95 % interval (Student\'s t).')
    return lines


def make_rows(arms: Sequence[Arm], baseline: str,
              zoo: float | None = None) -> list[Row]:
    """What the table says; arguments and errors as in :func:`as_text`."""
    check_comparable(arms)
    other = _find(arms, baseline)
    steps = metrics.shared_steps(curve for arm in arms for curve in arm.curves)
    return [_row(arm, other, steps, zoo if arm is other else None)
            for arm in arms]


def make_columns(arms: Sequence[Arm], rows: Sequence[Row]) -> list[Column]:
    """The columns that have something to say about these rows."""
    unit, digits = arms[0].runs[0].unit, _digits(arms)
    per = 'epoch' if unit == 'epoch' else 'validation'
    columns = [
        Column('arm', lambda row: row.arm),
        Column('seeds', lambda row: str(row.n)),
        _value('best', 'best', digits),
        _value('final', 'final', digits),
        _value('area', 'area', digits),
        _value('drop', f'drop/{per}', digits + 1),
        Column('model zoo', lambda row: _number(row.zoo, digits)),
        Column('s/iter', lambda row: _estimate(row.time, 3)),
        Column('memory (MB)', lambda row: _estimate(row.memory, 0)),
        Column(f'{unit}s to match', lambda row: _match(row.match),
               against=True),
        _difference('best', digits),
        _difference('final', digits),
        _difference('area', digits),
        Column('rel. time', lambda row: _times(row.time_ratio), against=True),
        Column('rel. memory', lambda row: _times(row.memory_ratio),
               against=True),
    ]
    always = ('arm', 'best', 'final', 'area', f'{unit}s to match',
              f'drop/{per}')
    return [column for column in columns if column.title in always
            or _says_something(column, rows)]


def split_columns(rows: Sequence[Row],
                  columns: Sequence[Column]) -> list[list[Column]]:
    """One table, or two where one would be wider than 120 characters.

    The first has the arms' own numbers, the second those against the
    baseline; the arms' names are in both.
    """
    if len(_render(rows, columns, _PLAIN).splitlines()[0]) <= _TEXT_WIDTH:
        return [list(columns)]
    name, *others = columns
    return [[name, *(column for column in others if column.against == against)]
            for against in (False, True)]


def _says_something(column: Column, rows: Sequence[Row]) -> bool:
    if column.title == 'seeds':
        return any(row.n > 1 for row in rows)
    if column.difference and not any(row.n > 1 for row in rows):
        return False
    return any(column.cell(row) != '-' for row in rows)


def _value(key: str, title: str, digits: int) -> Column:
    return Column(title, lambda row: _estimate(row.values[key], digits))


def _difference(key: str, digits: int) -> Column:
    def cell(row: Row) -> str:
        difference = row.differences[key]
        if difference is None:
            return '-'
        return _with_spread(difference.mean, difference.half_width, digits,
                            sign='+')

    return Column(f'{key} - baseline', cell, against=True, difference=key)


def _row(arm: Arm, baseline: Arm, steps: set[int],
         zoo: float | None) -> Row:
    numbers: dict[str, Callable[[Run], float | None]] = {
        'best': lambda run: metrics.best(run.values, run.higher_is_better),
        'final': lambda run: metrics.final(run.values),
        'area': lambda run: _area(run, steps),
        'drop': lambda run: metrics.drop(run.values, run.higher_is_better),
    }
    pairs = [] if arm is baseline else paired_runs(arm, baseline)
    times, memory = _costs(arm)
    other_times, other_memory = _costs(baseline)
    return Row(
        arm=arm.name,
        n=len(arm.runs),
        values={key: _over_seeds([number(run) for run in arm.runs])
                for key, number in numbers.items()},
        differences={key: _paired(pairs, number)
                     for key, number in numbers.items()},
        match=metrics.match(arm.curves, baseline.curves,
                            arm.runs[0].higher_is_better),
        time=_over_seeds(times),
        time_ratio=metrics.ratio(times, other_times),
        memory=_over_seeds(memory),
        memory_ratio=metrics.ratio(memory, other_memory),
        zoo=zoo)


def _area(run: Run, steps: set[int]) -> float | None:
    """Over the points that all runs have: equal stretches for everyone."""
    values = [value for step, value in run.points if step in steps]
    return metrics.area(values) if values else None


def _costs(arm: Arm) -> tuple[list[float | None], list[float | None]]:
    return ([run.time_per_iter for run in arm.runs],
            [run.memory for run in arm.runs])


def _over_seeds(values: Sequence[float | None]) -> Estimate | None:
    return None if None in values else metrics.over_seeds(values)


def _paired(pairs: Sequence[tuple[Run, Run]],
            number: Callable[[Run], float | None]) -> Difference | None:
    ours = [number(run) for run, _ in pairs]
    theirs = [number(other) for _, other in pairs]
    if not pairs or None in ours or None in theirs:
        return None
    return metrics.paired_difference(ours, theirs)


def _find(arms: Sequence[Arm], name: str) -> Arm:
    for arm in arms:
        if arm.name == name:
            return arm
    raise ValueError(
        f'baseline={name!r} is not an arm, because the arms are '
        f'{[arm.name for arm in arms]}. Name one of these.')


def _digits(arms: Sequence[Arm]) -> int:
    """Three for a fraction (COCO's mAP), two for a percentage."""
    largest = max((abs(v) for arm in arms for run in arm.runs
                   for v in run.values if not math.isnan(v)), default=1)
    return 3 if largest <= 1 else 2


def _render(rows: Sequence[Row], columns: Sequence[Column],
            style: box.Box) -> str:
    plain = style is _PLAIN
    table = Table(box=style, collapse_padding=plain, pad_edge=not plain)
    for column in columns:
        table.add_column(column.title, no_wrap=True,
                         justify='left' if column.title == 'arm' else 'right')
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns))
    out = io.StringIO()
    console = Console(file=out, width=500, color_system=None, markup=False)
    console.print(table)
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return '\n'.join(line for line in lines if line)


def _number(value: float | None, digits: int) -> str:
    return '-' if value is None else f'{value:.{digits}f}'


def _estimate(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return '-'
    return _with_spread(estimate.mean, estimate.std, digits)


def _with_spread(mean: float, spread: float | None, digits: int,
                 sign: str = '') -> str:
    text = f'{mean:{sign}.{digits}f}'
    return text if spread is None else f'{text} +- {spread:.{digits}f}'


def _match(match: Match | None) -> str:
    return '-' if match is None else f'{match.step} ({match.ratio:.2f})'


def _times(ratio: float | None) -> str:
    return '-' if ratio is None else f'{ratio:.2f}x'


def _numbers(row: Row, about: dict[str, str]) -> dict:
    """A row of the CSV."""
    cells = dict(arm=row.arm, seeds=row.n, **about)
    for key, estimate in row.values.items():
        difference = row.differences[key]
        cells[f'{key}_mean'] = estimate and estimate.mean
        cells[f'{key}_std'] = estimate and estimate.std
        cells[f'{key}_difference'] = difference and difference.mean
        cells[f'{key}_half_width'] = difference and difference.half_width
        cells[f'{key}_n'] = difference and difference.n
    cells |= dict(
        match_step=row.match and row.match.step,
        match_ratio=row.match and row.match.ratio,
        zoo=row.zoo,
        time_per_iter_mean=row.time and row.time.mean,
        time_per_iter_std=row.time and row.time.std,
        time_ratio=row.time_ratio,
        memory_mb_mean=row.memory and row.memory.mean,
        memory_mb_std=row.memory and row.memory.std,
        memory_ratio=row.memory_ratio)
    return cells

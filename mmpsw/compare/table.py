"""Arms side by side, as plain text or as Markdown."""

import io
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from mmpsw.compare import metrics
from mmpsw.compare.runs import Arm, check_comparable

# Headers with a rule below them; ASCII, so that every terminal and log has it.
_PLAIN = box.Box(
    '    \n    \n -- \n    \n    \n    \n    \n    \n', ascii=True)


def as_text(arms: Sequence[Arm], baseline: str) -> str:
    """An aligned table without colours or control codes.

    Args:
        arms: The rows, in this order.
        baseline: The name of the arm that the others are compared with.

    Raises:
        ValueError: If the arms are not comparable or ``baseline`` is none.
    """
    return _render(arms, baseline, _PLAIN)


def as_markdown(arms: Sequence[Arm], baseline: str) -> str:
    """The same table in Markdown; arguments as in :func:`as_text`."""
    return _render(arms, baseline, box.MARKDOWN)


def _render(arms: Sequence[Arm], baseline: str, style: box.Box) -> str:
    check_comparable(arms)
    columns = _columns(arms, _find(arms, baseline))
    table = Table(box=style)
    for title in columns:
        table.add_column(title, no_wrap=True,
                         justify='left' if title == 'arm' else 'right')
    for arm in arms:
        table.add_row(*(cell(arm) for cell in columns.values()))
    out = io.StringIO()
    console = Console(file=out, width=500, color_system=None, markup=False)
    console.print(table)
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return '\n'.join(line for line in lines if line)


def _find(arms: Sequence[Arm], name: str) -> Arm:
    for arm in arms:
        if arm.name == name:
            return arm
    raise ValueError(
        f'baseline={name!r} is not an arm, because the arms are '
        f'{[arm.name for arm in arms]}. Name one of these.')


def _columns(arms: Sequence[Arm],
             baseline: Arm) -> dict[str, Callable[[Arm], str]]:
    """Titles, and what each says about an arm."""
    unit, digits = baseline.runs[0].unit, _digits(arms)
    per = 'epoch' if unit == 'epoch' else 'validation'
    columns = {
        'arm': lambda arm: arm.name,
        'best': lambda arm: _estimate(_bests(arm), digits),
        'final': lambda arm: _estimate(_finals(arm), digits),
        f'{unit}s to match': lambda arm: _match(arm, baseline),
        f'drop/{per}': lambda arm: _estimate(_drops(arm), digits + 1),
        's/iter': lambda arm: _estimate(_times(arm), 3),
        'rel. time': lambda arm: _time_ratio(arm, baseline),
    }
    if len(baseline.runs) > 1:
        columns['best - baseline'] = lambda arm: _difference(
            arm, baseline, _bests, digits)
        columns['final - baseline'] = lambda arm: _difference(
            arm, baseline, _finals, digits)
    if any(run.memory is not None for arm in arms for run in arm.runs):
        columns['memory (MB)'] = lambda arm: _estimate(
            [run.memory for run in arm.runs], 0)
    return columns


def _digits(arms: Sequence[Arm]) -> int:
    """Three for a fraction (COCO's mAP), two for a percentage."""
    largest = max(abs(v) for arm in arms for run in arm.runs
                  for v in run.values)
    return 3 if largest <= 1 else 2


def _bests(arm: Arm) -> list[float]:
    return [metrics.best(r.values, r.higher_is_better) for r in arm.runs]


def _finals(arm: Arm) -> list[float]:
    return [metrics.final(run.values) for run in arm.runs]


def _drops(arm: Arm) -> list[float | None]:
    return [metrics.drop(r.values, r.higher_is_better) for r in arm.runs]


def _times(arm: Arm) -> list[float | None]:
    return [run.time_per_iter for run in arm.runs]


def _estimate(values: Sequence[float | None], digits: int) -> str:
    if None in values:
        return '-'
    mean, std = metrics.over_seeds(values)
    text = f'{mean:.{digits}f}'
    return text if std is None else f'{text} +- {std:.{digits}f}'


def _difference(arm: Arm, baseline: Arm,
                number: Callable[[Arm], list[float]], digits: int) -> str:
    if arm is baseline:
        return '-'
    mean, half_width = metrics.paired_difference(number(arm),
                                                 number(baseline))
    return f'{mean:+.{digits}f} +- {half_width:.{digits}f}'


def _match(arm: Arm, baseline: Arm) -> str:
    higher = baseline.runs[0].higher_is_better
    step = metrics.epochs_to_match(arm.curves, baseline.curves, higher)
    return '-' if step is None else str(step)


def _time_ratio(arm: Arm, baseline: Arm) -> str:
    times, others = _times(arm), _times(baseline)
    if None in times or None in others:
        return '-'
    ratio = metrics.over_seeds(times).mean / metrics.over_seeds(others).mean
    return f'{ratio:.2f}x'

"""Several comparisons in one table and one picture.

Each is the ``table.csv`` that a report has written; its folder's name is its
name. So a README's numbers can be made again without training anything.
"""
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ['KEYS', 'Comparison', 'as_markdown', 'plot', 'read', 'tally']

KEYS = {
    'final': 'final value',
    'best': 'best value',
    'area': 'mean over the training',
    'drop': 'drop per validation',
}
_BETTER, _WORSE, _OPEN = '#0072B2', '#D55E00', '#888888'


@dataclass(frozen=True)
class Comparison:
    """One comparison's table.

    Attributes:
        name: What it is called.
        rows: Each arm's row of ``table.csv``, by the arm's name.
    """

    name: str
    rows: dict[str, dict[str, str]]

    @property
    def metric(self) -> str:
        """What was measured."""
        return next(iter(self.rows.values()))['metric']

    def sign(self, key: str) -> int:
        """1 where a positive difference is good, else -1."""
        higher = next(iter(self.rows.values()))['better'] == 'higher'
        return 1 if higher and key != 'drop' else -1

    def number(self, arm: str, key: str, what: str) -> float | None:
        """A number of an arm, or None where the table has none."""
        text = self.rows.get(arm, {}).get(f'{key}_{what}', '')
        return float(text) if text else None

    def verdict(self, arm: str, key: str) -> int:
        """1 or -1 where the difference's interval is on one side of 0."""
        mean = self.number(arm, key, 'difference')
        half = self.number(arm, key, 'half_width')
        if mean is None or half is None or abs(mean) <= half:
            return 0
        return self.sign(key) * (1 if mean > 0 else -1)


def read(paths: Sequence[str | Path]) -> list[Comparison]:
    """Reads ``table.csv`` files, or the folders that hold them.

    Raises:
        ValueError: A file is missing, is none of these, or two comparisons
            have one name.
    """
    found: dict[str, Comparison] = {}
    for path in map(Path, paths):
        file = path / 'table.csv' if path.is_dir() else path
        if not file.is_file():
            raise ValueError(
                f"'{file}' does not exist; give the table.csv that "
                'compare.py report has written, or its folder')
        with open(file, newline='', encoding='utf-8') as lines:
            rows = list(csv.DictReader(lines))
        if not rows or not {'arm', 'metric', 'better'} <= rows[0].keys():
            raise ValueError(
                f"'{file}' is no table of a comparison, because it has no "
                'columns arm, metric and better; give the table.csv that '
                'compare.py report has written')
        name = file.parent.name
        if name in found:
            raise ValueError(f"two comparisons are called '{name}', after "
                             'their folders; rename one')
        found[name] = Comparison(name, {row['arm']: row for row in rows})
    return list(found.values())


def arms_of(comparisons: Sequence[Comparison]) -> list[str]:
    """All arms, in the order in which they come."""
    return list(dict.fromkeys(
        arm for comparison in comparisons for arm in comparison.rows))


def as_markdown(comparisons: Sequence[Comparison], key: str = 'final') -> str:
    """A row for each arm and a column for each comparison.

    A cell is the mean over seeds, and the mean paired difference to the
    baseline with its 95 % interval; bold where the interval is without 0.

    Raises:
        ValueError: ``key`` is none of :data:`KEYS`.
    """
    _check(key)
    head = ['arm', *(f'{c.name}, {c.metric}' for c in comparisons)]
    lines = [head, ['---'] * len(head)]
    for arm in arms_of(comparisons):
        lines.append([arm, *(_cell(c, arm, key) for c in comparisons)])
    return _table(lines)


def tally(comparisons: Sequence[Comparison], keys: Sequence[str]) -> str:
    """In how many comparisons an arm is better, undecided and worse.

    It is undecided where the 95 % interval of the difference holds 0.

    Raises:
        ValueError: One of ``keys`` is none of :data:`KEYS`.
    """
    for key in keys:
        _check(key)
    lines = [['arm', *(KEYS[key] for key in keys)],
             ['---'] * (1 + len(keys))]
    for arm in arms_of(comparisons):
        counts = [_count(comparisons, arm, key) for key in keys]
        if any(sum(count) for count in counts):
            lines.append([arm, *(' / '.join(map(str, c)) for c in counts)])
    return _table(lines)


def _table(lines: Sequence[Sequence[str]]) -> str:
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


def _count(comparisons: Sequence[Comparison], arm: str,
           key: str) -> list[int]:
    verdicts = [
        comparison.verdict(arm, key) for comparison in comparisons
        if comparison.number(arm, key, 'half_width') is not None
    ]
    return [verdicts.count(verdict) for verdict in (1, 0, -1)]


def _cell(comparison: Comparison, arm: str, key: str) -> str:
    mean = comparison.number(arm, key, 'mean')
    if mean is None:
        return '-'
    digits = _digits(comparison, key)
    difference = comparison.number(arm, key, 'difference')
    half = comparison.number(arm, key, 'half_width')
    text = f'{mean:.{digits}f}'
    if difference is None:
        return text
    change = f'{difference:+.{digits}f}'
    if half is not None:
        change += f' ± {half:.{digits}f}'
    if comparison.verdict(arm, key):
        change = f'**{change}**'
    return f'{text} ({change})'


def _digits(comparison: Comparison, key: str) -> int:
    """Percentages have one digit, fractions three; small drops one more."""
    values = [comparison.number(arm, 'best', 'mean') or 0
              for arm in comparison.rows]
    return (3 if max(values) <= 1 else 1) + (key == 'drop')


def plot(comparisons: Sequence[Comparison], path: str | Path,
         keys: Sequence[str] = ('final', 'area'),
         baseline: str = 'baseline') -> Path:
    """Draws the paired differences to the baseline with their intervals.

    Args:
        comparisons: A column of panels for each.
        path: The PNG to write.
        keys: A row of panels for each.
        baseline: The arm that is the zero line.

    Returns:
        ``path``.

    Raises:
        ValueError: One of ``keys`` is none of :data:`KEYS`.
    """
    for key in keys:
        _check(key)
    arms = [arm for arm in arms_of(comparisons) if arm != baseline]
    figure = Figure(
        figsize=(1.6 + 2.1 * len(comparisons),
                 (0.7 + 0.24 * len(arms)) * len(keys) + 0.4),
        dpi=150, layout='constrained')
    grid = figure.subplots(len(keys), len(comparisons), squeeze=False,
                           sharey=True)
    for axes_row, key in zip(grid, keys):
        for axes, comparison in zip(axes_row, comparisons):
            _draw(axes, comparison, arms, key)
        axes_row[0].set_yticks(range(len(arms)), arms)
        axes_row[0].set_ylim(len(arms) - 0.5, -0.5)
    for axes, comparison in zip(grid[0], comparisons):
        axes.set_title(f'{comparison.name}\n{comparison.metric}', fontsize=9)
    figure.supxlabel(f'difference to {baseline}, 95 % interval over seeds; '
                     'blue is better, orange worse, grey undecided',
                     fontsize=9)
    FigureCanvasAgg(figure)
    figure.savefig(path, format='png')
    return Path(path)


def _draw(axes, comparison: Comparison, arms: Sequence[str],
          key: str) -> None:
    axes.axvline(0, color='#000000', linewidth=0.8)
    for place, arm in enumerate(arms):
        mean = comparison.number(arm, key, 'difference')
        if mean is None:
            continue
        half = comparison.number(arm, key, 'half_width')
        color = {1: _BETTER, -1: _WORSE, 0: _OPEN}[
            comparison.verdict(arm, key)]
        axes.errorbar(mean, place, xerr=half, color=color, marker='o',
                      markersize=4, capsize=2, linewidth=1.3)
    axes.grid(axis='x', color='#DDDDDD', linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.tick_params(labelsize=8, left=False)
    axes.locator_params(axis='x', nbins=4)
    axes.set_xlabel(KEYS[key], fontsize=8)


def _check(key: str) -> None:
    if key not in KEYS:
        raise ValueError(f"'{key}' is not a number of a comparison; give one "
                         f'of {", ".join(KEYS)}')

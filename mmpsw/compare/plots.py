"""Pictures: validation curves, and differences to the baseline."""
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmpsw.compare.table import KEYS, curve

__all__ = ['NARROW', 'WIDE', 'check_format', 'drawn', 'plot_curves',
           'plot_differences', 'save']

WIDE, NARROW = 8.5, 3.6  # inches: of a page, and of a telephone
# Okabe and Ito's colours, which the colour-blind can tell apart, without
# yellow, too pale for a line on white; markers say the same in print.
_COLORS = ('#D55E00', '#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_MARKERS = ('s', '^', 'D', 'v', 'P', 'X')
_BASELINE = ('#1A1A1A', 'o')
_STYLE = {
    'svg.hashsalt': 'mmpsw',  # no random names
    'text.parse_math': False,  # a name's $ is a $
    'axes.grid': True, 'axes.axisbelow': True, 'grid.color': '#E2E2E2',
    'axes.spines.top': False, 'axes.spines.right': False,
    'font.size': 10, 'axes.titlesize': 10,
}
_VERDICTS = {1: '#0072B2', -1: '#D55E00'}
_MANY = 5  # arms; more of them, in one panel, would be a tangle


def looks(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each arm: no pair repeats among 36."""
    return {arm: (_COLORS[i % 6], _MARKERS[(i + i // 6) % 6])
            for i, arm in enumerate(arms)}


@matplotlib.rc_context(_STYLE)
def plot_curves(table: pd.DataFrame, baseline: str, title: str = '',
                width: float = WIDE, log: bool = False) -> Figure:
    """Draw the validation metric of every arm over its steps, or a setting.

    A line is the mean over an arm's seeds, the band around it that mean +-
    their standard deviation. The baseline is black and dashed. More than five
    arms get a panel each, with the baseline in all of them.

    Args:
        table: One comparison's :func:`mmpsw.compare.table.long`.
        baseline: The arm that the others are compared with.
        title: Above the picture.
        width: In inches.
        log: Whether the steps double, as those of a setting may.
    """
    arms = list(table.arm.unique())
    others = [arm for arm in arms if arm != baseline]
    panels = [[arm] for arm in others] if len(arms) > _MANY else [others]
    columns = min(len(panels), int(width // 1.75) if width < 5 else 3)
    rows = -(-len(panels) // columns)
    height = (0.62 * width if width > 5 else 1.1 * width) if len(
        panels) == 1 else 0.78 * width / columns * rows + 0.8
    figure = Figure(figsize=(width, height), dpi=150, layout='constrained')
    grid = figure.subplots(rows, columns, sharex=True, sharey=True,
                           squeeze=False).ravel()
    own = looks(others) | {baseline: _BASELINE}
    for axes, shown in zip(grid, panels):
        for arm in (baseline, *shown):
            _draw_curve(axes, curve(table, arm, not log), arm, *own[arm],
                        '--' if arm == baseline else '-')
        if log:
            steps = sorted(table.step.unique())
            axes.set_xscale('log', base=2)
            axes.set_xticks(steps, [f'{step:g}' for step in steps])
        else:
            axes.xaxis.set_major_locator(MaxNLocator(
                integer=True, min_n_ticks=1, nbins=8 if columns == 1 else 4))
        if len(panels) > 1:
            axes.set_title(shown[0], color=own[shown[0]][0], loc='left')
    for axes in grid[len(panels):]:
        axes.set_visible(False)
    first = table[table.step.notna()].iloc[0]
    counts = table.groupby(['arm', 'step']).run.nunique().groupby('arm').max()
    seeds = ' to '.join(map(str, sorted({counts.min(), counts.max()})))
    note = ('one run an arm' if seeds == '1' else
            f'mean and standard deviation, {seeds} seeds')
    dashed = f'; dashed: {baseline}' if others else ''
    figure.supxlabel(f'{first.unit} ({note}{dashed})', fontsize=9, wrap=True)
    figure.supylabel(f'{first.key} ({first.better} is better)', fontsize=10)
    if len(panels) == 1:
        handles = axes.get_lines()
        figure.legend(
            handles, [line.get_label() for line in handles], frameon=False,
            **(dict(loc='outside right center') if width > 5 else
               dict(loc='outside upper left', ncols=2, columnspacing=1,
                    handlelength=1.6)))
    figure.suptitle(title, x=0.01, ha='left', fontweight='bold')
    return figure


@matplotlib.rc_context({**_STYLE, 'axes.grid.axis': 'x'})
def plot_differences(numbers: pd.DataFrame, baseline: str,
                     keys: Sequence[str] = ('final', ),
                     width: float | None = None) -> Figure:
    """Draw the differences to the baseline, with their intervals.

    Args:
        numbers: What :func:`mmpsw.compare.table.statistics` returns.
        baseline: The arm that is the zero line.
        keys: What is compared.
        width: In inches. By default each comparison is a column of panels,
            and each key a row of them; with a width one comparison's keys
            lie side by side, or below each other where it is narrow.
    """
    arms = [arm for arm in numbers.arm.unique() if arm != baseline]
    names = list(numbers.comparison.unique())
    panels = [[(key, name) for name in names] for key in keys]
    if width is not None and width > 5:
        panels = [[(key, names[0]) for key in keys]]
    rows, columns = len(panels), len(panels[0])
    figure = Figure(
        figsize=(width or 1.6 + 2.1 * columns,
                 (0.75 + 0.26 * len(arms)) * rows + 0.5),
        dpi=150, layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, (key, name) in zip(grid.flat, sum(panels, [])):
        found = numbers[(numbers.comparison == name) & (numbers.key == key)]
        _draw_differences(axes, found.set_index('arm').reindex(arms))
        axes.set_xlabel(KEYS[key])
    for axes_row in grid:
        axes_row[0].set_yticks(range(len(arms)), arms)
        axes_row[0].set_ylim(len(arms) - 0.5, -0.5)
    if len(names) > 1:
        for axes, name in zip(grid[0], names):
            axes.set_title(name)
    intervals = (numbers.pairs > 1).any()
    figure.supxlabel(f'difference to {baseline}' + (
        ', 95 % interval over seeds; blue is better, orange worse, grey '
        'undecided' if intervals else ''), fontsize=9, wrap=True)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure without a window; equal figures make equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(drawn(figure, path.suffix[1:]))
    return path


def drawn(figure: Figure, kind: str) -> bytes:
    """A figure as 'png', 'svg' or what else matplotlib knows."""
    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format=kind, metadata={'Date': None}
                       if kind == 'svg' else {})
    return file.getvalue()


def check_format(path: Path, overwrite: bool = False) -> None:
    """Refuse a picture's path before the work that leads to it.

    Raises:
        ValueError: Its ending names no format, or it exists.
    """
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise ValueError(f"no picture can be written to '{path}', because "
                         f"'{path.suffix}' is not the ending of a format; "
                         'give a path that ends in .png, .svg or .pdf')
    if path.exists() and not overwrite:
        raise ValueError(f"'{path}' exists; give another path, or "
                         '--overwrite')


def _draw_curve(axes: Axes, points: pd.DataFrame, label: str, color: str,
                marker: str, dashes: str) -> None:
    mean, std = points['mean'], points['std']
    steps = points.index.to_numpy(float)
    axes.fill_between(steps, mean - std, mean + std, color=color, alpha=0.15,
                      linewidth=0)
    axes.plot(steps, mean, color=color, marker=marker, label=label,
              linestyle=dashes, linewidth=1.6, markersize=4)


def _draw_differences(axes: Axes, rows: pd.DataFrame) -> None:
    """Arms that have none leave their place empty."""
    axes.axvline(0, color='#000000', linewidth=0.8)
    for place, row in enumerate(rows.itertuples()):
        axes.errorbar(row.difference, place, xerr=row.half_width,
                      color=_VERDICTS.get(row.verdict, '#888888'),
                      marker='o', markersize=4, capsize=2, linewidth=1.3)
    axes.locator_params(axis='x', nbins=4)

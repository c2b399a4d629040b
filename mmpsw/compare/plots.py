"""Pictures: validation curves, and differences to the baseline."""
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmpsw.compare.comparison import Comparison
from mmpsw.compare.summary import KEYS
from mmpsw.compare.table import curve, verdicts

__all__ = ['plot_curves', 'plot_differences', 'save']

# Okabe and Ito's colours, which the colour-blind can tell apart, without
# yellow, too pale for a line on white; markers say the same in print.
_LOOKS = (('#D55E00', 's'), ('#0072B2', '^'), ('#009E73', 'D'),
          ('#CC79A7', 'v'), ('#E69F00', 'P'), ('#56B4E9', 'X'))
_TEXT, _FAINT, _GRID = '#1A1A1A', '#666666', '#E2E2E2'
_VERDICTS = {1: '#0072B2', -1: '#D55E00'}
_MANY = 5  # arms; more of them, in one panel, would be a tangle


def plot_curves(c: Comparison, title: str = '') -> Figure:
    """Draw the validation metric of every arm over its runs.

    A line is the mean over an arm's seeds, the band around it that mean +-
    their standard deviation. The baseline is black and dashed. More than five
    arms get a panel each, with the baseline in all of them.
    """
    others = [arm for arm in c.arms if arm != c.baseline]
    panels = ([[arm] for arm in others] if len(c.arms) > _MANY else [others])
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (8, 5) if len(panels) == 1 else (3.3 * columns, 2.4 * rows + 0.8)
    figure = Figure(figsize=size, dpi=150, layout='constrained')
    grid = figure.subplots(rows, columns, sharex=True, sharey=True,
                           squeeze=False).flat
    looks = dict(zip(others, _LOOKS * len(others)))
    for axes, arms in zip(grid, panels):
        for arm in (c.baseline, *arms):
            _draw_curve(axes, curve(c, arm), arm, *looks.get(
                arm, (_TEXT, 'o')), '--' if arm == c.baseline else '-')
        _decorate(axes)
        if len(panels) > 1:
            axes.set_title(arms[0], color=looks[arms[0]][0], loc='left',
                           fontsize=10, fontweight='bold')
    for axes in list(grid)[len(panels):]:
        axes.set_visible(False)
    note = curves_note(c) + (f'; dashed: {c.baseline}' if others else '')
    figure.supxlabel(f'{c.unit} ({note})', fontsize=10, color=_TEXT)
    figure.supylabel(f'validation {c.metric} ({c.better} is better)',
                     fontsize=10, color=_TEXT)
    if len(panels) == 1:
        _add_legend(figure, axes)
    if title:
        figure.suptitle(title, x=0.01, ha='left', fontweight='bold',
                        color=_TEXT)
    return figure


def curves_note(c: Comparison) -> str:
    """What the lines and bands of a picture of these arms show."""
    counts = sorted(set(c.runs.arm.value_counts()))
    if counts == [1]:
        return 'one run an arm'
    return ('mean and standard deviation over '
            f'{" to ".join(map(str, {counts[0]: 0, counts[-1]: 0}))} seeds')


def plot_differences(table: pd.DataFrame, keys: Sequence[str] = ('final', ),
                     baseline: str = 'baseline') -> Figure:
    """Draw the paired differences to the baseline with their intervals.

    Args:
        table: What :func:`mmpsw.compare.summary.read` returns; each
            comparison is a column of panels.
        keys: A row of panels for each.
        baseline: The arm that is the zero line.
    """
    arms = [arm for arm in table.arm.unique() if arm != baseline]
    names = table.comparison.unique()
    figure = Figure(figsize=(1.6 + 2.1 * len(names),
                             (0.7 + 0.24 * len(arms)) * len(keys) + 0.4),
                    dpi=150, layout='constrained')
    grid = figure.subplots(len(keys), len(names), squeeze=False, sharey=True)
    for axes_row, key in zip(grid, keys):
        for axes, name in zip(axes_row, names):
            _draw_differences(axes, table[table.comparison == name], arms, key)
        axes_row[0].set_yticks(range(len(arms)), arms)
        axes_row[0].set_ylim(len(arms) - 0.5, -0.5)
    for axes, name in zip(grid[0], names):
        metric = table.metric[table.comparison == name].iloc[0]
        axes.set_title(f'{name}\n{metric}', fontsize=9)
    figure.supxlabel(f'difference to {baseline}, 95 % interval over seeds; '
                     'blue is better, orange worse, grey undecided',
                     fontsize=9)
    return figure


def save(figure: Figure, path: str | Path | IO[bytes],
         file_format: str | None = None, **options) -> str | Path | IO[bytes]:
    """Write a figure without a window; equal figures make equal files."""
    if isinstance(path, (str, Path)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file_format = file_format or Path(path).suffix[1:]
    # Without these an SVG has the date and random names in it.
    with matplotlib.rc_context({'svg.hashsalt': 'mmpsw'}):
        figure.savefig(
            path, format=file_format, **options,
            metadata={'Date': None} if file_format == 'svg' else {})
    return path


def _draw_curve(axes: Axes, points: pd.DataFrame, label: str, color: str,
                marker: str, dashes: str) -> None:
    mean, std = points['mean'], points['std']
    axes.fill_between(points.index, mean - std, mean + std, color=color,
                      alpha=0.15, linewidth=0)
    axes.plot(points.index, mean, color=color, marker=marker, label=label,
              linestyle=dashes, linewidth=1.6, markersize=4)


def _decorate(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1,
                                             nbins=8))
    axes.tick_params(colors=_FAINT, labelsize=9)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(_FAINT)


def _add_legend(figure: Figure, axes: Axes) -> None:
    """Outside of the axes, in the order in which the eye finds the ends."""
    ends = {line: line.get_ydata()[-1] if len(line.get_ydata()) else 0
            for line in axes.get_lines()}
    figure.legend(handles=sorted(ends, key=ends.get, reverse=True),
                  loc='outside right center', frameon=False, fontsize=9)


def _draw_differences(axes: Axes, table: pd.DataFrame, arms: Sequence[str],
                      key: str) -> None:
    axes.axvline(0, color='#000000', linewidth=0.8)
    rows = table.assign(verdict=verdicts(table, key)).set_index('arm')
    for place, arm in enumerate(arms):
        if arm in rows.index and pd.notna(rows[f'{key}_difference'][arm]):
            row = rows.loc[arm]
            axes.errorbar(row[f'{key}_difference'], place,
                          xerr=row[f'{key}_half_width'],
                          color=_VERDICTS.get(row.verdict, '#888888'),
                          marker='o', markersize=4, capsize=2, linewidth=1.3)
    axes.grid(axis='x', color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.tick_params(labelsize=8, left=False)
    axes.locator_params(axis='x', nbins=4)
    axes.set_xlabel(KEYS[key], fontsize=8)

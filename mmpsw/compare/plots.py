"""Pictures: validation curves, and differences to the baseline."""
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmpsw.compare.comparison import Comparison
from mmpsw.compare.summary import KEYS
from mmpsw.compare.table import curve, verdicts

__all__ = ['LOOKS', 'STYLE', 'plot_curves', 'plot_differences', 'plot_sweep',
           'save']

# Okabe and Ito's colours, which the colour-blind can tell apart, without
# yellow, too pale for a line on white; markers say the same in print.
LOOKS = (('#D55E00', 's'), ('#0072B2', '^'), ('#009E73', 'D'),
          ('#CC79A7', 'v'), ('#E69F00', 'P'), ('#56B4E9', 'X'))
STYLE = {
    'svg.hashsalt': 'mmpsw',  # no random names
    'axes.grid': True, 'axes.axisbelow': True, 'grid.color': '#E2E2E2',
    'axes.spines.top': False, 'axes.spines.right': False,
    'xtick.labelsize': 9, 'ytick.labelsize': 9, 'axes.titlesize': 10,
}
_VERDICTS = {1: '#0072B2', -1: '#D55E00'}
_MANY = 5  # arms; more of them, in one panel, would be a tangle


@matplotlib.rc_context(STYLE)
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
                           squeeze=False).ravel()
    looks = dict(zip(others, LOOKS * len(others)))
    for axes, arms in zip(grid, panels):
        for arm in (c.baseline, *arms):
            _draw_curve(axes, curve(c, arm), arm, *looks.get(
                arm, ('#1A1A1A', 'o')), '--' if arm == c.baseline else '-')
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1,
                                                 nbins=8))
        if len(panels) > 1:
            axes.set_title(arms[0], color=looks[arms[0]][0], loc='left')
    for axes in grid[len(panels):]:
        axes.set_visible(False)
    counts = sorted({min(c.runs.arm.value_counts()),
                     max(c.runs.arm.value_counts())})
    note = ('one run an arm' if counts == [1] else 'mean and standard '
            f'deviation over {" to ".join(map(str, counts))} seeds')
    dashed = f'; dashed: {c.baseline}' if others else ''
    figure.supxlabel(f'{c.unit} ({note}{dashed})', fontsize=10)
    figure.supylabel(f'validation {c.metric} ({c.better} is better)',
                     fontsize=10)
    if len(panels) == 1:
        figure.legend(handles=axes.get_lines(), loc='outside right center',
                      frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha='left', fontweight='bold')
    return figure


@matplotlib.rc_context({**STYLE, 'axes.grid.axis': 'x'})
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
            rows = table.assign(verdict=verdicts(table, key))[
                table.comparison == name].set_index('arm')
            _draw_differences(axes, rows.reindex(arms), key)
        axes_row[0].set_yticks(range(len(arms)), arms)
        axes_row[0].set_ylim(len(arms) - 0.5, -0.5)
    for axes, name in zip(grid[0], names):
        metric = table.metric[table.comparison == name].iloc[0]
        axes.set_title(f'{name}\n{metric}')
    figure.supxlabel(f'difference to {baseline}, 95 % interval over seeds; '
                     'blue is better, orange worse, grey undecided',
                     fontsize=9)
    return figure


@matplotlib.rc_context(STYLE)
def plot_sweep(runs: pd.DataFrame, c: Comparison, key: str,
               title: str = '') -> Figure:
    """Draw the last validation of every arm against a setting.

    A line is the mean over the seeds, the band around it reaches from the
    worst to the best of them.

    Args:
        runs: What :func:`mmpsw.compare.sweep.read` returns.
        c: A comparison that has the metric and the baseline.
        key: The setting, for the axis.
        title: Above the picture.
    """
    figure = Figure(figsize=(7, 4), dpi=150, layout='constrained')
    axes = figure.subplots()
    looks = iter(LOOKS * len(runs))
    for arm, rows in runs.groupby('arm', sort=False):
        values = rows.groupby('setting').value
        is_baseline = arm == c.baseline
        color, marker = ('#1A1A1A', 'o') if is_baseline else next(looks)
        axes.fill_between(values.min().index, values.min(), values.max(),
                          color=color, alpha=0.15, linewidth=0)
        axes.plot(values.mean(), color=color, marker=marker, label=arm,
                  linestyle='--' if is_baseline else '-', linewidth=1.6,
                  markersize=4)
    settings = sorted(runs.setting.unique())
    axes.set_xscale('log', base=2)
    axes.set_xticks(settings, [f'{value:g}' for value in settings])
    axes.set_xlabel(f'{key} (mean, worst and best of '
                    f'{runs.seed.nunique()} seeds)')
    axes.set_ylabel(f'last validation, {c.metric} ({c.better} is better)')
    figure.legend(loc='outside right center', frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha='left', fontweight='bold')
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure without a window; equal figures make equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, metadata={'Date': None} if path.suffix == '.svg'
                       else {})
    return path


def _draw_curve(axes: Axes, points: pd.DataFrame, label: str, color: str,
                marker: str, dashes: str) -> None:
    mean, std = points['mean'], points['std']
    axes.fill_between(points.index, mean - std, mean + std, color=color,
                      alpha=0.15, linewidth=0)
    axes.plot(points.index, mean, color=color, marker=marker, label=label,
              linestyle=dashes, linewidth=1.6, markersize=4)


def _draw_differences(axes: Axes, rows: pd.DataFrame, key: str) -> None:
    """Arms that have none leave their place empty."""
    axes.axvline(0, color='#000000', linewidth=0.8)
    for place, (_, row) in enumerate(rows.iterrows()):
        axes.errorbar(row[f'{key}_difference'], place,
                      xerr=row[f'{key}_half_width'],
                      color=_VERDICTS.get(row.verdict, '#888888'),
                      marker='o', markersize=4, capsize=2, linewidth=1.3)
    axes.locator_params(axis='x', nbins=4)
    axes.set_xlabel(KEYS[key], fontsize=8)

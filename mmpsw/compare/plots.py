"""Validation curves of several arms, in one picture."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import IO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmpsw.compare import metrics
from mmpsw.compare.runs import Arm, check_comparable

# Okabe and Ito's colours, which the colour-blind can tell apart, without
# yellow, too pale for a line on white; and the same hues, lighter, on black.
# Markers and dashes say the same on a black-and-white print, and tell apart
# arms whose colours repeat.
_COLORS = ('#D55E00', '#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_COLORS_ON_BLACK = ('#F07F3C', '#4C8DFF', '#2EC4A0', '#E39AC5', '#F0B429',
                    '#9AD8FF')
_MARKERS = ('s', '^', 'D', 'v', 'P', 'X', 'p', '<', '*', '>', 'h')
_DASHES = ('-', ':', '-.', '-', '--', ':', '--', '-.', ':', '-.', '-')
_MANY = 5  # arms; more of them are drawn finer


@dataclass(frozen=True)
class Theme:
    """The colours of a picture."""

    background: str
    text: str
    faint: str
    grid: str
    lines: tuple[str, ...]


LIGHT = Theme('#FFFFFF', '#1A1A1A', '#666666', '#DDDDDD', _COLORS)
DARK = Theme('#17191C', '#E8E8E8', '#9AA0A6', '#34383D', _COLORS_ON_BLACK)

# Inches. Below the second, a legend has no room beside the curves.
WIDE = (8, 5)
_NARROW = 6


def plot_curves(arms: Sequence[Arm],
                path: str | Path | IO[bytes],
                title: str = '',
                note: str = '',
                theme: Theme = LIGHT,
                size: tuple[float, float] = WIDE,
                file_format: str | None = None) -> str | Path | IO[bytes]:
    """Draw the validation metric of every arm over the training.

    A line is the mean over an arm's seeds, the band around it that mean +-
    their standard deviation. The legend beside is ordered as the lines end.

    Args:
        arms: The lines; the first one is the black, dashed one.
        path: The .png or .svg to write, or a file that is open for it.
        title: Above the axes.
        note: A line below the title, in smaller type.
        theme: The colours.
        size: Width and height in inches. The legend goes below where it is
            less than six inches wide.
        file_format: 'png' or 'svg'; by default what the path ends with.

    Returns:
        ``path``.
    """
    check_comparable(arms)
    figure = Figure(figsize=size, dpi=150, layout='constrained',
                    facecolor=theme.background)
    axes = figure.add_subplot()
    many = len(arms) > _MANY
    ends = {}
    for arm, style in zip(arms, _styles(theme)):
        line, ends[arm.name] = _draw_arm(axes, arm, style, many)
        line.set_label(arm.name)
    _decorate(axes, arms, theme)
    axes.set_title(title, loc='left', fontweight='bold', color=theme.text,
                   pad=24 if note else 12)
    axes.annotate(note, (0, 1), xytext=(0, 8), xycoords='axes fraction',
                  textcoords='offset points', color=theme.faint, fontsize=9)
    _add_legend(figure, axes, ends, theme)
    return save(figure, path, file_format)


def _styles(theme: Theme) -> Iterator[dict]:
    """The baseline's style, and then the other arms'."""
    yield dict(color=theme.text, marker='o', linestyle='--', zorder=3)
    for color, marker, dashes in zip(
            cycle(theme.lines), cycle(_MARKERS), cycle(_DASHES)):
        yield dict(color=color, marker=marker, linestyle=dashes)


def _draw_arm(axes: Axes, arm: Arm, style: Mapping, many: bool) -> tuple:
    """Draws an arm; returns its line and where that ends."""
    mean = metrics.mean_curve(arm.curves)
    if not mean:  # its seeds were validated at different steps
        return axes.plot([], [], **style)[0], float('nan')
    steps, values = zip(*mean, strict=True)
    if len(arm.runs) > 1:
        spread = [std for _, std in metrics.std_curve(arm.curves)]
        axes.fill_between(
            steps,
            [value - std for value, std in zip(values, spread)],
            [value + std for value, std in zip(values, spread)],
            color=style['color'], alpha=0.08 if many else 0.16, linewidth=0)
    line, = axes.plot(steps, values, linewidth=1.4 if many else 2,
                      markersize=4 if many else 5, **style)
    return line, values[-1]


def _decorate(axes: Axes, arms: Sequence[Arm], theme: Theme) -> None:
    run = arms[0].runs[0]
    better = 'higher' if run.higher_is_better else 'lower'
    axes.set_xlabel(run.unit, color=theme.text)
    rule = f' ({better} is better)' if _is_wide(axes.figure) else ''
    axes.set_ylabel(f'validation {run.metric}{rule}', color=theme.text)
    axes.set_facecolor(theme.background)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.tick_params(colors=theme.text)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(theme.faint)


def _add_legend(figure: Figure, axes: Axes, ends: Mapping[str, float],
                theme: Theme) -> None:
    """Beside the curves, in the order in which the eye finds their ends."""
    handles, names = axes.get_legend_handles_labels()
    wide = _is_wide(figure)
    order = range(len(names))
    if wide:
        order = sorted(order, key=lambda i: ends[names[i]], reverse=True)
    # Outside of the axes, where it cannot cover a curve.
    figure.legend(
        [handles[i] for i in order], [names[i] for i in order],
        loc='outside right center' if wide else 'outside lower left',
        ncols=1 if wide else 2, handlelength=3.2, frameon=False,
        labelcolor=theme.text, fontsize=9)


def _is_wide(figure: Figure) -> bool:
    return figure.get_figwidth() >= _NARROW


def save(figure: Figure, path: str | Path | IO[bytes],
         file_format: str | None = None) -> str | Path | IO[bytes]:
    """Write a figure without pyplot: no window, no global state.

    Equal figures make equal files.
    """
    if isinstance(path, (str, Path)):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        file_format = file_format or path.suffix.removeprefix('.')
    FigureCanvasAgg(figure)
    # Without these an SVG has the date and random names in it.
    with matplotlib.rc_context({'svg.hashsalt': 'mmpsw'}):
        figure.savefig(path, format=file_format,
                       metadata={'Date': None} if file_format == 'svg' else {})
    return path

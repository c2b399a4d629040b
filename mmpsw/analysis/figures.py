"""The pictures of the analysis tools."""
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from .loss_surface import LinePoint, Width
from .spread import Histogram, LayerSpread

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLACK, ORANGE, BLUE, GREEN = '#000000', '#D55E00', '#0072B2', '#009E73'
_GREY = '#666666'
# Rows of a picture of layers; with more, biases and norms are left to the CSV.
_MOST_ROWS = 80


def draw_line(points: Sequence[LinePoint],
              ends: tuple[str, str],
              path: Path,
              metric: str | None = None,
              title: str = '') -> Path:
    """Draw the loss, and below it one metric, along a line.

    Args:
        points: In the order of ``t``.
        ends: Names of the weights at t = 0 and t = 1.
        path: The PNG to write.
        metric: The metric to draw, if any.
        title: Above the picture.

    Returns:
        ``path``.
    """
    rows = 1 if metric is None else 2
    figure = Figure(figsize=(8, 1.2 + 3.2 * rows), dpi=150,
                    layout='constrained')
    panels = figure.subplots(rows, sharex=True, squeeze=False)[:, 0]
    ts = [point.t for point in points]
    _draw_curve(panels[0], ts, [point.loss for point in points], ORANGE,
                'training loss')
    _limit_above(panels[0], points)
    if metric is not None:
        values = [point.metrics.get(metric, math.nan) for point in points]
        _draw_curve(panels[1], ts, values, BLUE, f'validation {metric}')
    panels[-1].set_xlabel(f't     (0: {ends[0]},  1: {ends[1]})')
    figure.suptitle(title, x=0.01, ha='left', fontweight='bold')
    return _save(figure, path)


def _draw_curve(axes: Axes, ts: Sequence[float], values: Sequence[float],
                color: str, label: str) -> None:
    axes.plot(ts, values, color=color, linewidth=2, marker='o', markersize=4)
    for end in (0, 1):
        axes.axvline(end, color=_GREY, linewidth=1, linestyle=':', zorder=0)
    axes.set_ylabel(label)
    axes.grid(color='#EEEEEE', linewidth=0.8)
    axes.spines[['top', 'right']].set_visible(False)


def _limit_above(axes: Axes, points: Sequence[LinePoint]) -> None:
    """Logarithmic, where the loss beyond the ends dwarfs that between."""
    losses = [p.loss for p in points if math.isfinite(p.loss)]
    if losses and min(losses) > 0 and max(losses) > 20 * min(losses):
        axes.set_yscale('log')


def draw_planes(planes: Mapping[str, Sequence[Sequence[float]]],
                lengths: Sequence[float],
                widths: Mapping[str, Width],
                path: Path,
                title: str = '') -> Path:
    """Draw the loss around several weights, on one scale of colours.

    Args:
        planes: For each name the losses, rows of y.
        lengths: The steps along x and y.
        widths: For each name; its contour of the risen loss is drawn strong.
        path: The PNG to write.
        title: Above the picture.

    Returns:
        ``path``.
    """
    count = len(planes)
    columns = min(count, 4)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(3.6 * columns + 1, 3.7 * rows + 0.6), dpi=150,
                    layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True,
                             sharey=True)
    levels = _levels(planes)
    for axes, (name, losses) in zip(panels.flat, planes.items()):
        top = np.nan_to_num(np.array(losses), nan=np.inf, posinf=np.inf)
        clipped = np.log(np.clip(top, levels[0], levels[-1]))
        filled = axes.contourf(lengths, lengths, clipped, np.log(levels),
                               cmap='cividis_r')
        axes.contour(lengths, lengths, clipped, np.log(levels[1:-1]),
                     colors='white', linewidths=0.4, linestyles='solid')
        _draw_center(axes, lengths, top, widths[name])
        axes.set_title(f'{name}\n{_describe(widths[name])}', fontsize=9)
        axes.set_aspect('equal')
        half = lengths[-1] / 2
        ticks = [-2 * half, -half, 0, half, 2 * half]
        axes.set(xticks=ticks, yticks=ticks)
        axes.tick_params(labelsize=8)
    for axes in list(panels.flat)[count:]:
        axes.set_visible(False)
    bar = figure.colorbar(filled, ax=panels, shrink=0.9,
                          label='training loss')
    bar.set_ticks(np.log(levels[::2]), labels=[f'{level:.2g}'
                                               for level in levels[::2]])
    rise = next(iter(widths.values())).rise
    figure.supxlabel('random direction 1 (in filter norms)     orange: where '
                     f'the loss is {rise:.2g} higher', fontsize=9)
    figure.supylabel('random direction 2', fontsize=9)
    figure.suptitle(title, x=0.01, ha='left', fontweight='bold')
    return _save(figure, path)


def _describe(width: Width) -> str:
    sign = '> ' if width.open else ''
    return f'loss {width.loss:.3g}, width {sign}{width.mean:.2g}'


def _draw_center(axes: Axes, lengths: Sequence[float], losses: np.ndarray,
                 width: Width) -> None:
    axes.plot(0, 0, marker='+', color=ORANGE, markersize=10,
              markeredgewidth=2)
    edge = width.loss + width.rise
    if losses.min() < edge < losses.max():
        finite = np.minimum(losses, 10 * edge)
        axes.contour(lengths, lengths, np.log(finite), [math.log(edge)],
                     colors=ORANGE, linewidths=1.8, linestyles='solid')


def _levels(planes: Mapping[str, Sequence[Sequence[float]]],
            count: int = 17) -> np.ndarray:
    """Levels of equal ratio, from the lowest loss to the usual highest."""
    losses = np.concatenate([np.ravel(rows) for rows in planes.values()])
    losses = losses[np.isfinite(losses) & (losses > 0)]
    low = losses.min() if losses.size else 1.0
    high = max(np.quantile(losses, 0.98) if losses.size else 2.0, low * 1.01)
    return np.geomspace(low, high, count)


def draw_layers(layers: Sequence[LayerSpread], path: Path,
                title: str = '') -> Path:
    """Draw each layer's relative spread and shift, in the model's order.

    Args:
        layers: From the first layer to the last.
        path: The PNG to write.
        title: Above the picture.

    Returns:
        ``path``.
    """
    shown, note = list(layers), ''
    if len(shown) > _MOST_ROWS:
        shown = [layer for layer in layers if len(layer.shape) > 1]
        note = '  (biases and norms: see the CSV)'
    figure = Figure(figsize=(9, 1.6 + 0.2 * len(shown)), dpi=150,
                    layout='constrained')
    axes = figure.add_subplot()
    rows = range(len(shown))
    series = (
        ('spread: std of a weight over the samples / rms of the mean', 'o',
         ORANGE, [layer.relative_std for layer in shown]),
        ('shift: ||mean - last weights|| / ||last weights||', 'D', BLUE,
         [layer.shift for layer in shown]))
    for label, marker, color, values in series:
        positive = [v if v > 0 else math.nan for v in values]
        axes.plot(positive, rows, marker, color=color, markersize=5,
                  label=label)
    axes.set_yticks(rows, [layer.name for layer in shown], fontsize=7)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}')
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel('relative to the weights of the layer' + note)
    axes.grid(color='#E4E4E4', linewidth=0.7)
    axes.spines[['top', 'right']].set_visible(False)
    figure.suptitle(title, x=0.01, ha='left', fontweight='bold')
    figure.legend(loc='outside lower center', ncols=1, frameon=False)
    return _save(figure, path)


def draw_histograms(histograms: Sequence[Histogram], path: Path,
                    title: str = '') -> Path:
    """Draw the distribution of standardised weights of some layers.

    Args:
        histograms: One for each layer.
        path: The PNG to write.
        title: Above the picture.

    Returns:
        ``path``.
    """
    figure = Figure(figsize=(3.2 * len(histograms) + 0.4, 3.4), dpi=150,
                    layout='constrained')
    panels = figure.subplots(1, len(histograms), sharey=True, squeeze=False)
    for axes, histogram in zip(panels[0], histograms):
        edges = np.array(histogram.edges)
        axes.stairs(histogram.density, edges, fill=True, color=BLUE,
                    alpha=0.5, label='samples')
        xs = np.linspace(edges[0], edges[-1], 200)
        axes.plot(xs, np.exp(-xs**2 / 2) / math.sqrt(2 * math.pi), '--',
                  color=BLACK, linewidth=1.2, label='normal')
        axes.set_title(histogram.name, fontsize=8)
        axes.spines[['top', 'right']].set_visible(False)
    panels[0, 0].set_ylabel('density')
    panels[0, 0].legend(frameon=False, fontsize=8)
    figure.supxlabel('(w - mean) / std, for each weight over the samples',
                     fontsize=9)
    figure.suptitle(title, x=0.01, ha='left', fontweight='bold')
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A canvas of its own: no pyplot, no window, no global state.
    FigureCanvasAgg(figure)
    figure.savefig(path, format='png')
    return path

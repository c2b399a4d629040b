"""Tables, CSV files and the picture of a benchmark."""
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Column, Table

from mmpsw.results import write_csv

from .contenders import FLAT_COPY, FLAT_LERP
from .sampling import Cost
from .steps import Step
from .timing import Spread

__all__ = ['cost_table', 'draw_growth', 'step_table', 'write_costs',
           'write_steps']

_SPREAD = ('median', 'quartile_1', 'quartile_3')


def cost_table(costs: Sequence[Cost], title: str) -> Table:
    """What each call costs, one in a row."""
    table = Table(_names(), 'ops', 'bytes', 'memory', 'ms', 'x flat lerp_',
                  title=title)
    table.caption = (
        'ops: operations dispatched; bytes: read and written for each '
        'parameter; memory: held at most beside the model, in bytes for each '
        'parameter. Times are medians; in brackets the quartiles.')
    for cost in costs:
        if cost.time is None:
            table.add_row(cost.name, cost.note)
            continue
        memory = '' if cost.memory is None else f'{cost.memory:.1f}'
        table.add_row(cost.name, str(cost.operations), f'{cost.bytes:.1f}',
                      memory, f'{cost.time.median * 1000:.4g}',
                      _ratio(cost.ratio, 2))
    return table


def step_table(steps: Sequence[Step], title: str) -> Table:
    """The time of a step of each arm, one in a row."""
    table = Table(_names(), 'ms a step', 'x baseline', title=title)
    table.caption = 'Medians over periods; in brackets the quartiles.'
    for step in steps:
        table.add_row(step.name, f'{step.time.median * 1000:.4g}',
                      _ratio(step.ratio, 3))
    return table


def write_costs(path: Path, costs: Iterable[Cost], device: str) -> None:
    """One row for each call, in seconds and bytes."""
    header = [
        'name', 'parameters', 'tensors', 'device', 'note', 'operations',
        'bytes_per_parameter', 'memory_per_parameter',
        *(f'seconds_{part}' for part in _SPREAD),
        *(f'ratio_to_flat_lerp_{part}' for part in _SPREAD)
    ]
    write_csv(path, header, [
        [c.name, c.elements, c.tensors, device, c.note, c.operations, c.bytes,
         c.memory, *(c.time or [None] * 3), *(c.ratio or [None] * 3)]
        for c in costs
    ])


def write_steps(path: Path, steps: dict[str, Sequence[Step]],
                device: str) -> None:
    """One row for each arm of each config."""
    header = ['config', 'name', 'device',
              *(f'seconds_{part}' for part in _SPREAD),
              *(f'ratio_to_baseline_{part}' for part in _SPREAD)]
    write_csv(path, header, [[config, s.name, device, *s.time, *s.ratio]
                          for config, rows in steps.items() for s in rows])


def draw_growth(by_size: Sequence[Cost], by_tensors: Sequence[Cost],
                path: Path) -> Path:
    """Time against bytes, with the line of the bandwidth, and against M."""
    figure = Figure(figsize=(11, 4.5), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes, costs in ((left, by_size), (right, by_tensors)):
        for number, name in enumerate(dict.fromkeys(c.name for c in costs)):
            rows = [c for c in costs if c.name == name and c.time]
            if not rows or name == FLAT_COPY:
                continue
            flat = name == FLAT_LERP
            axes.plot(
                [c.elements * c.bytes if axes is left else c.tensors
                 for c in rows], [c.time.median for c in rows],
                color='black' if flat else
                matplotlib.colormaps['tab10'](number),
                linestyle='--' if flat else '-', label=name,
                marker=None if flat else 'osv^DPX*'[number % 8], alpha=0.8)
        axes.set(xscale='log', yscale='log', ylabel='seconds a sample')
        axes.grid(alpha=0.3)
    _bandwidth(left, by_size)
    left.set(xlabel='bytes that a sample reads and writes')
    total = by_tensors[0].elements if by_tensors else 0
    right.set(xlabel=f'tensors, of {total:.3g} parameters together')
    left.legend(fontsize='small')
    figure.savefig(path)
    return path


def _bandwidth(axes: Any, costs: Sequence[Cost]) -> None:
    """The best rate of a flat pass, as a line through the origin."""
    flat = [c for c in costs if c.name in (FLAT_LERP, FLAT_COPY) and c.time]
    if not flat:
        return
    largest = max(c.elements for c in flat)
    rate = max(c.elements * c.bytes / c.time.median for c in flat
               if c.elements == largest)
    ends = [f([c.elements * c.bytes for c in costs if c.time])
            for f in (min, max)]
    axes.plot(ends, [end / rate for end in ends], color='gray', zorder=0,
              linewidth=4, alpha=0.4, label=f'{rate / 1e9:.3g} GB/s')


def _names() -> Column:
    return Column(no_wrap=True)


def _ratio(ratio: Spread, digits: int) -> str:
    median, low, high = (f'{part:.{digits}f}' for part in ratio)
    return f'{median} ({low}-{high})'

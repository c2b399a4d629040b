"""What one sample costs, beside the same of peers."""
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .contenders import (
    FLAT_LERP,
    OURS,
    PEERS,
    SAMPLE,
    Contender,
    MissingError,
    averaged_elements,
    flat_passes,
)
from .counting import counted, peak_memory
from .timing import Spread, interleaved, ratios

__all__ = ['Cost', 'GROWTH', 'measure', 'needed_bytes', 'synthetic']

Track = Callable[[Sequence, str], Iterable]
# The others are not at home among models of 1e9 parameters.
GROWTH = (SAMPLE, 'torch AveragedModel', 'mmengine EMA', 'timm ModelEmaV3',
          'ema-pytorch')


@dataclass(frozen=True)
class Cost:
    """What one call costs.

    Attributes:
        name (str): Of what was called.
        elements, tensors (int): Of the model: averaged numbers, parameters.
        note (str): Why the rest is None, if it is.
        operations (int): Dispatched.
        bytes (float): Read and written, for each element; counted.
        memory (float): Peak of what is held beside the model, for each
            element, in bytes.
        time (Spread): Seconds.
        ratio (Spread): Time over that of the flat ``lerp_``.
    """

    name: str
    elements: int
    tensors: int
    note: str = ''
    operations: int | None = None
    bytes: float | None = None
    memory: float | None = None
    time: Spread | None = None
    ratio: Spread | None = None


def synthetic(elements: int, tensors: int, dtype: torch.dtype,
              device: torch.device) -> nn.Module:
    """Parameters of equal size; the last ones are smaller by one.

    Raises:
        ValueError: There are fewer elements than tensors.
    """
    if elements < tensors:
        raise ValueError(f'{elements} parameters cannot fill {tensors} '
                         'tensors; ask for more parameters, or fewer tensors')
    size, larger = divmod(elements, tensors)
    return nn.ParameterList(
        torch.ones(size + (i < larger), dtype=dtype, device=device)
        for i in range(tensors))


def measure(model: nn.Module,
            repeats: int,
            track: Track,
            names: Sequence[str] | None = None) -> list[Cost]:
    """Count, then time, all that is named, on one model.

    Args:
        model (nn.Module): It is averaged, and not changed.
        repeats (int): Rounds in which each is timed once.
        track (Callable): Goes through the rounds, and shows progress.
        names (Sequence[str], optional): What to measure beside the flat
            passes. Defaults to everything.

    Returns:
        List[Cost]: The flat passes first, then ours, then the peers.
    """
    elements = averaged_elements(model)
    like = next(model.parameters())
    tensors = len(list(model.parameters()))
    builders: Mapping[str, Callable] = {**OURS, **PEERS}
    built: dict[str, Contender] = flat_passes(elements, like)
    costs: dict[str, Cost] = {}
    for name in names or builders:
        try:
            memory = peak_memory(lambda n=name: _twice(builders[n], model),
                                 like.device)
            built[name] = builders[name](model)
        except MissingError as missing:
            costs[name] = Cost(name, elements, tensors, str(missing))
            continue
        costs[name] = Cost(name, elements, tensors, memory=memory / elements)
    rounds = track(range(repeats), f'{elements:.3g} in {tensors} tensors')
    times = interleaved(
        {name: contender.call for name, contender in built.items()}, rounds,
        like.device,
        {name: c.prepare for name, c in built.items() if c.prepare})
    for name, contender in built.items():
        if contender.prepare is not None:
            contender.prepare()
        count = counted(contender.call)
        memory = costs[name].memory if name in costs else None
        costs[name] = Cost(
            name, elements, tensors, '', len(count.operations),
            count.bytes / elements, memory, Spread.of(times[name]),
            ratios(times[name], times[FLAT_LERP]))
    order = [*built, *(name for name in costs if name not in built)]
    return [costs[name] for name in order]


def needed_bytes(elements: int, copies: int = 2 * len(GROWTH) + 3) -> int:
    """Memory that :func:`measure` needs for the names in ``GROWTH``."""
    return 4 * elements * copies


def _twice(build: Callable[[nn.Module], Contender], model: nn.Module) -> None:
    contender = build(model)
    contender.run()
    contender.run()

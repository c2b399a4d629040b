"""How large tensors are, and how far apart: looked at once a period.

The host waits once for each device. Temporary tensors take 64 MB at most, or
a little more where a tensor is sliced.
"""
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ['fits', 'squares']

_NUMBERS = 1 << 23  # in temporary tensors at once, two of them
_TENSORS = 64

Pair = tuple[Tensor, Tensor]


@torch.no_grad()
def fits(means: Sequence[Tensor], live: Sequence[Tensor]) -> list[bool]:
    """Whether no value is NaN, or too large for its live tensor's dtype."""
    filled = [mean for mean in means if mean.numel()]
    norms = torch._foreach_norm(filled, math.inf) if filled else []
    largest = iter(_numbers(norms))
    return [
        not mean.numel() or next(largest) <= torch.finfo(tensor.dtype).max
        for mean, tensor in zip(means, live)
    ]


@torch.no_grad()
def squares(means: Sequence[Tensor],
            live: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """``||m - w||^2`` and ``||w||^2``, for each pair."""
    moved, size, owners = [], [], []
    for part in _parts(means, live):
        owners += [owner for owner, _ in part]
        pairs = [pair for _, pair in part]
        theirs = [mean for mean, _ in pairs]
        tensors = [tensor.to(mean) for mean, tensor in pairs]
        moved += torch._foreach_norm(torch._foreach_sub(theirs, tensors))
        size += torch._foreach_norm(tensors)
    sums = [0.0] * len(means), [0.0] * len(means)
    for total, norms in zip(sums, (_numbers(moved), _numbers(size))):
        for owner, norm in zip(owners, norms):
            total[owner] += norm * norm
    return sums


def _parts(means: Sequence[Tensor],
           live: Sequence[Tensor]) -> Iterator[list[tuple[int, Pair]]]:
    """Slices of the pairs, with their owners' numbers, a few at a time."""
    part, numbers = [], 0
    for owner, (mean, tensor) in enumerate(zip(means, live)):
        slices = math.ceil(mean.numel() / _NUMBERS)
        pairs = [(mean, tensor)]
        if slices > 1:
            # Slices of the first dimension are dense, whose norm is exact.
            dim = 0 if mean.shape[0] >= slices else max(
                range(mean.dim()), key=mean.shape.__getitem__)
            pairs = zip(mean.tensor_split(slices, dim),
                        tensor.tensor_split(slices, dim))
        for pair in pairs:
            if part and (numbers + pair[0].numel() > _NUMBERS
                         or len(part) == _TENSORS):
                yield part
                part, numbers = [], 0
            part.append((owner, pair))
            numbers += pair[0].numel()
    if part:
        yield part


def _numbers(scalars: Sequence[Tensor]) -> list[float]:
    """Tensors of one element, real and on any devices, as numbers."""
    numbers = [0.0] * len(scalars)
    places: dict[tuple, list[int]] = {}
    for i, scalar in enumerate(scalars):
        places.setdefault((scalar.device, scalar.dtype), []).append(i)
    for indices in places.values():
        found = torch.stack([scalars[i] for i in indices]).tolist()
        for i, number in zip(indices, found):
            numbers[i] = number
    return numbers

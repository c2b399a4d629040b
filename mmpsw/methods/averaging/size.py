"""How large tensors are, and how far apart: looked at once a period.

The host waits once for each device.
"""
import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ['fits', 'shift']

_AT_ONCE = 64  # temporary tensors


@torch.no_grad()
def fits(means: Sequence[Tensor], live: Sequence[Tensor]) -> list[bool]:
    """Whether no value is NaN, or too large for its live tensor's dtype."""
    filled = [mean for mean in means if mean.numel()]
    largest = iter(_numbers(torch._foreach_norm(filled, math.inf)))
    return [
        not mean.numel() or next(largest) <= torch.finfo(tensor.dtype).max
        for mean, tensor in zip(means, live)
    ]


@torch.no_grad()
def shift(means: Sequence[Tensor], live: Sequence[Tensor]) -> float:
    """``||m - w|| / ||w||`` over all pairs; NaN where all of w is zero."""
    moved, size = [], []
    for begin in range(0, len(means), _AT_ONCE):
        part = means[begin:begin + _AT_ONCE]
        tensors = [tensor.to(mean.dtype)
                   for mean, tensor in zip(part, live[begin:])]
        moved += torch._foreach_norm(torch._foreach_sub(part, tensors))
        size += torch._foreach_norm(tensors)
    moved, size = _numbers(moved), _numbers(size)
    return math.hypot(*moved) / math.hypot(*size) if any(size) else math.nan


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

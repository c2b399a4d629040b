"""How large tensors are, and how far apart: looked at once a period.

The host waits once for each device.
"""
import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ['fits', 'shift']


@torch.no_grad()
def fits(means: Sequence[Tensor], live: Sequence[Tensor]) -> list[bool]:
    """Whether no value is NaN, or too large for its live tensor's dtype."""
    largest = _numbers([
        torch.linalg.vector_norm(mean, math.inf)
        if mean.numel() else mean.new_zeros(()) for mean in means
    ])
    return [
        number <= torch.finfo(tensor.dtype).max
        for number, tensor in zip(largest, live)
    ]


@torch.no_grad()
def shift(means: Sequence[Tensor], live: Sequence[Tensor]) -> float:
    """``||m - w|| / ||w||`` over all pairs; NaN where all of w is zero."""
    moved = _numbers([
        torch.linalg.vector_norm(mean - tensor)
        for mean, tensor in zip(means, live)
    ])
    size = _numbers([
        torch.linalg.vector_norm(tensor.to(mean.dtype))
        for mean, tensor in zip(means, live)
    ])
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

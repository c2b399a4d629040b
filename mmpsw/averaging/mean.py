"""The running mean of live tensors, in place and for all of them at once."""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ['ACCUMULATED_IN', 'RunningMean', 'accumulator', 'blend_', 'copy_']

# A mean needs more bits than its samples: a bf16 running mean of 1000 samples
# around 0.5 stood at 0.25. Wider types accumulate in themselves.
ACCUMULATED_IN: dict[torch.dtype, torch.dtype] = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}


class RunningMean:
    """``mu <- mu + (w - mu) / n`` over the samples of some live tensors.

    One copy of the tensors is allocated at the first sample, and is reused
    after a :meth:`restart`. The first sample is a copy; a further one reads w
    and mu and writes mu.

    Args:
        tensors (Sequence[Tensor]): The live tensors, of any shapes, devices
            and of the dtypes in ``ACCUMULATED_IN``; half precision is
            accumulated in fp32. They are only read.

    Attributes:
        samples (int): How many samples the mean holds (n).
        mean (List[Tensor]): One tensor for each live tensor, of its shape and
            device; meaningful while ``samples`` > 0. None before the first.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = list(tensors)
        self.samples = 0
        self.mean: list[Tensor] | None = None

    @torch.no_grad()
    def update(self) -> None:
        """Take one sample."""
        if self.mean is None:
            self.mean = [accumulator(tensor) for tensor in self.tensors]
        self.samples += 1
        if self.samples == 1:
            copy_(self.mean, self.tensors)
        else:
            blend_(self.mean, self.tensors, 1 / self.samples)

    def restart(self) -> None:
        """Begin anew; the memory stays for the next samples."""
        self.samples = 0


def accumulator(tensor: Tensor) -> Tensor:
    """An uninitialised mean for a live tensor: never a view of it."""
    return torch.empty_like(
        tensor, dtype=ACCUMULATED_IN[tensor.dtype], requires_grad=False)


@torch.no_grad()
def copy_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """``target <- source`` for all pairs."""
    _for_each_kind(torch._foreach_copy_, targets, sources)


@torch.no_grad()
def blend_(means: Sequence[Tensor], tensors: Sequence[Tensor],
           weight: float) -> None:
    """``mean <- mean + weight * (tensor - mean)`` for all pairs.

    A blend of equal values is that value, bit for bit, because their
    difference is zero.
    """

    def lerp_(some_means: list[Tensor], some: list[Tensor]) -> None:
        if some_means[0].dtype != some[0].dtype:
            some = [tensor.to(some_means[0].dtype) for tensor in some]
        torch._foreach_lerp_(some_means, some, weight)

    _for_each_kind(lerp_, means, tensors)


def _for_each_kind(operation: Callable, targets: Sequence[Tensor],
                   sources: Sequence[Tensor]) -> None:
    kinds: dict[tuple, tuple] = {}
    for target, source in zip(targets, sources):
        kind = (target.device, target.dtype, source.device, source.dtype)
        group = kinds.setdefault(kind, ([], []))
        group[0].append(target)
        group[1].append(source)
    for group in kinds.values():
        operation(*group)

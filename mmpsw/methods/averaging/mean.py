"""The running mean of live tensors, in place and for all of them at once.

What a sample costs, for each parameter: fp32 weights read w (4 bytes) and mu
(4), and write mu (4): 12 bytes, by one ``torch._foreach_lerp_`` for all
tensors of a device and dtype. Half-precision weights under an fp32 mean: 2 +
4 + 4 = 10 bytes, see :class:`_ConvertedGroup`. On a CPU the short vectors of
norms and biases are joined first, see :class:`_JoinedGroup`. A first sample
only copies. Nothing waits for the device, and memory is allocated in the first
window only.

What rounding does: each step ``mu + (w - mu) / n`` is rounded to half a unit
in the last place, and where weights drift slowly the step itself may be less
than that, so that nothing happens. The mean of n fp32 samples may be wrong by
``n / 2 * 2**-24`` of the weight: 2e-4 for an epoch of COCO, and 2.7e-3 was
seen for 1e5 samples. Whom that is too much averages blocks of 128 samples,
and blocks of these blocks. A level of k steps is wrong by at most ``k / 2 *
2**-24``, so that 1e5 samples are within 8e-6. It takes a second copy of the
weights with the 129th sample, and a third with the 16385th.
"""
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .offload import OffloadedGroup, host_memory, is_dense
from .pieces import Piece, batches

__all__ = ['ACCUMULATED_IN', 'RunningMean', 'blend_', 'copy_']

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


# A CPU joins a vector of so few elements faster than it calls an operation.
_SHORT = 4096
# Of all elements: with 8 bytes more for these a sample stays under 12.1.
_MOST_JOINED = 1 / 80


class RunningMean:
    """``mu <- mu + (w - mu) / n`` over the samples of some live tensors.

    One copy of the tensors is allocated at the first sample, and is reused
    after a :meth:`restart`. The first sample of a block is a copy; a further
    one reads w and mu and writes mu.

    Args:
        tensors (Sequence[Tensor]): The live tensors, of any shapes, devices
            and of the dtypes in ``ACCUMULATED_IN``; half precision is
            accumulated in fp32. They are only read.
        offloaded (int): The means of so many of the first tensors are in
            host memory (those that are dense). Defaults to 0.
        block (int, optional): How many samples, or means of so many, are
            averaged before it goes one level up. Defaults to None: all.

    Attributes:
        samples (int): How many samples the mean holds (n).
        mean (List[Tensor]): One tensor for each live tensor, of its shape,
            and of its device unless offloaded: then call :meth:`finish`
            before you read them. The mean of the newest block; None before
            the first sample.
        blocks (List[List[Tensor]]): The means of the blocks before it, and of
            the blocks of these blocks; meaningful as far as :meth:`levels`.
    """

    def __init__(self,
                 tensors: Sequence[Tensor],
                 offloaded: int = 0,
                 block: int | None = None):
        self.tensors = list(tensors)
        self.offloaded = offloaded
        self.block = block or sys.maxsize
        self.samples = 0
        self.mean: list[Tensor] | None = None
        self.blocks: list[list[Tensor]] = []
        self._layout: list[tuple] = []
        self._groups: list[_Group] = []

    @torch.no_grad()
    def update(self) -> None:
        """Take one sample."""
        if not self.samples or not self._groups:
            self._group()
        in_block = self.samples % self.block
        if self.samples and not in_block:
            self._fold()
        self.samples += 1
        for group in self._groups:
            if in_block == 0:
                group.copy_()
            else:
                group.blend_(1 / (in_block + 1))

    def restart(self) -> None:
        """Begin anew; the memory stays for the next samples."""
        self.samples = 0

    def complete(self) -> list[Tensor]:
        """The mean of all samples; the next one begins anew."""
        self.finish()
        mean = self._joined(self.mean)
        self.restart()
        return mean

    def so_far(self) -> list[Tensor]:
        """A copy of the mean of all samples."""
        self.finish()
        return self._joined([mean.clone() for mean in self.mean])

    def levels(self) -> list[int]:
        """How many samples ``mean``, and each of ``blocks``, holds."""
        levels, left, unit = [], self.samples, 1
        while left:
            here = ((left // unit - 1) % self.block + 1) * unit
            levels.append(here)
            left -= here
            unit *= self.block
        return levels

    def _joined(self, mean: list[Tensor]) -> list[Tensor]:
        """The newest block's mean, with those of the blocks before it."""
        newest, *older = self.levels()
        done = newest
        for block, samples in zip(self.blocks, older):
            done += samples
            blend_(mean, block, samples / done)
        return mean

    def _fold(self, level: int = 0) -> None:
        """Move a full block's mean one level up."""
        self.finish()
        full = self.samples // self.block**(level + 1)
        here = self.blocks[level - 1] if level else self.mean
        if level == len(self.blocks):
            self.blocks.append(self.accumulators())
        in_block = (full - 1) % self.block
        if in_block == 0:
            if full > 1:
                self._fold(level + 1)
            copy_(self.blocks[level], here)
        else:
            blend_(self.blocks[level], here, 1 / (in_block + 1))

    def allocate(self) -> list[Tensor]:
        """The mean, uninitialised where there was none."""
        if self.mean is None:
            self.mean = self.accumulators()
        return self.mean

    def accumulators(self) -> list[Tensor]:
        """Uninitialised means for the live tensors: never views of them."""
        means: list[Any] = [
            None if group else torch.empty_like(
                tensor, dtype=ACCUMULATED_IN[tensor.dtype],
                requires_grad=False)
            for tensor, group in zip(self.tensors, self._flat_groups)
        ]
        kinds: dict[tuple, list[int]] = {}
        for i, (tensor, group) in enumerate(
                zip(self.tensors, self._flat_groups)):
            if group:
                kind = (tensor.device, tensor.dtype, group)
                kinds.setdefault(kind, []).append(i)
        for (_, dtype, _), indices in kinds.items():
            parts = host_memory([self.tensors[i] for i in indices],
                                ACCUMULATED_IN[dtype])
            for i, part in zip(indices, parts):
                means[i] = part
        return means

    @functools.cached_property
    def _flat_groups(self) -> list[type | None]:
        """Whose means lie one after another in host memory, for which group.

        Decided once, because all copies have to lie alike.
        """
        groups = [
            OffloadedGroup if i < self.offloaded and is_dense(tensor) else None
            for i, tensor in enumerate(self.tensors)
        ]
        short = [
            i for i, tensor in enumerate(self.tensors)
            if groups[i] is None and _is_short(tensor)
        ]
        elements = sum(self.tensors[i].numel() for i in short)
        total = sum(tensor.numel() for tensor in self.tensors)
        if len(short) > 1 and elements <= _MOST_JOINED * total:
            for i in short:
                groups[i] = _JoinedGroup
        return groups

    def wait(self) -> None:
        """Let what changes the tensors begin after the newest sample."""
        for group in self._groups:
            group.wait()

    def finish(self) -> None:
        """Wait until the means of the newest sample can be read."""
        for group in self._groups:
            group.finish()

    def _group(self) -> None:
        """Once a window: a parameter stays, its data may be replaced."""
        kinds: dict[tuple, tuple[list[Tensor], list[Tensor]]] = {}
        for mean, live, flat in zip(self.allocate(), self.tensors,
                                    self._flat_groups):
            if flat:
                kind = (flat, mean.untyped_storage().data_ptr())
            elif mean.dtype == live.dtype:
                kind = (_Group, *_pair_kind(mean, live))
            else:
                kind = (_ConvertedGroup, *_pair_kind(mean, live))
            means, tensors = kinds.setdefault(kind, ([], []))
            means.append(mean)
            tensors.append(live)
        layout = [(kind, list(map(id, live)))
                  for kind, (_, live) in kinds.items()]
        if layout != self._layout:
            self._layout = layout
            self._groups = [
                kind[0](*pairs) for kind, pairs in kinds.items()
            ]


class _Group:
    """Means and tensors of one device and dtype."""

    def __init__(self, means: list[Tensor], tensors: list[Tensor]):
        self.means = means
        self.tensors = tensors

    def copy_(self) -> None:
        torch._foreach_copy_(self.means, self.tensors)

    def blend_(self, weight: float) -> None:
        torch._foreach_lerp_(self.means, self.tensors, weight)

    def wait(self) -> None:
        """Nothing: the device keeps the order."""

    def finish(self) -> None:
        """Nothing: the device keeps the order."""


class _ConvertedGroup(_Group):
    """Means of a wider dtype than their tensors (fp32 and bf16).

    ``lerp_`` takes no two dtypes, ``add_`` and ``sub_`` do but convert into
    a whole temporary on a CPU, leave the multi-tensor path on a GPU, and two
    passes over mu are 18 bytes. So the weights are converted piece by piece,
    into one small buffer that stays in the cache: memory sees 2 bytes of w,
    and 8 of mu. The results are those of a conversion as a whole.
    """

    def __init__(self, means: list[Tensor], tensors: list[Tensor]):
        super().__init__(means, tensors)
        found = list(batches(means))
        self.buffer = means[0].new_empty(
            max(sum(p.of(means).numel() for p in batch) for batch in found))
        self.batches = [self._views(batch) for batch in found]

    def blend_(self, weight: float) -> None:
        for batch, converted, means in self.batches:
            # Anew each time: the parameters' data may have been replaced.
            pieces = [piece.of(self.tensors) for piece in batch]
            torch._foreach_copy_(converted, pieces)
            torch._foreach_lerp_(means, converted, weight)

    def _views(self, batch: list[Piece]) -> tuple:
        """A batch, its pieces of the buffer, and of the means."""
        means = [piece.of(self.means) for piece in batch]
        converted, start = [], 0
        for mean in means:
            flat = self.buffer[start:start + mean.numel()]
            # Equal strides are what the multi-tensor kernels ask for.
            dense = torch.empty_like(mean, device='meta').stride()
            converted.append(flat.as_strided(mean.shape, dense))
            start += mean.numel()
        return batch, converted, means


class _JoinedGroup(_Group):
    """Vectors so short that an operation takes longer to call than to do.

    On a CPU a multi-tensor operation is one call for each tensor, of about a
    microsecond: of ResNet-50's parameters and statistics, four in five are
    vectors of a batch norm, and hold 0.4 % of the elements. So they are joined
    in one small buffer, and blended with means that lie one after another: 8
    bytes more for each of these elements, which pays where they are few. The
    results are the same.
    """

    def __init__(self, means: list[Tensor], tensors: list[Tensor]):
        super().__init__(means, tensors)
        total = sum(mean.numel() for mean in means)
        self.flat = means[0].as_strided((total, ), (1, ), 0)
        self.buffer = torch.empty_like(self.flat)

    def copy_(self) -> None:
        torch.cat(self.tensors, out=self.flat)

    def blend_(self, weight: float) -> None:
        torch.cat(self.tensors, out=self.buffer)
        self.flat.lerp_(self.buffer, weight)


def _is_short(tensor: Tensor) -> bool:
    return (tensor.device.type == 'cpu' and tensor.dim() == 1
            and tensor.numel() <= _SHORT and tensor.is_contiguous()
            and ACCUMULATED_IN[tensor.dtype] == tensor.dtype)


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
    for group in _by_kind(targets, sources).values():
        operation(*group)


def _by_kind(
    targets: Sequence[Tensor], sources: Sequence[Tensor]
) -> dict[tuple, tuple[list[Tensor], list[Tensor]]]:
    """The pairs, by both their devices and dtypes."""
    kinds: dict[tuple, tuple] = {}
    for target, source in zip(targets, sources):
        group = kinds.setdefault(_pair_kind(target, source), ([], []))
        group[0].append(target)
        group[1].append(source)
    return kinds


def _pair_kind(target: Tensor, source: Tensor) -> tuple:
    return target.device, target.dtype, source.device, source.dtype

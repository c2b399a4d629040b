"""Large work in small pieces, so that temporaries stay small."""
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['Piece', 'at_once', 'batches', 'pieces']

# torch gives each CPU thread 32768 elements or more. A piece of one fp32
# buffer for each thread stays in that core's second-level cache, so that what
# goes through it costs no memory bandwidth: measured on one core, pieces of
# 16 Ki to 64 Ki elements were the fastest.
_CPU_ELEMENTS = 32768
# A GPU wants large launches; 16 MiB of fp32 still lie in its cache.
_GPU_ELEMENTS = 1 << 22


class Piece(NamedTuple):
    """A tensor of a list, or a part of it that is contiguous in one dim.

    Attributes:
        index (int): The number of the tensor.
        dim, start, length (int): The part; ``dim=None`` is the whole tensor.
    """

    index: int
    dim: int | None = None
    start: int = 0
    length: int = 0

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """The piece of one of several lists of tensors of equal shapes."""
        tensor = tensors[self.index]
        if self.dim is None:
            return tensor
        return tensor.narrow(self.dim, self.start, self.length)


def pieces(tensors: Sequence[Tensor]) -> Iterator[Piece]:
    """All the tensors in order, the large ones divided."""
    for index, tensor in enumerate(tensors):
        yield from _divide(index, tensor, at_once(tensor.device))


def batches(tensors: Sequence[Tensor]) -> Iterator[list[Piece]]:
    """The pieces of tensors on one device, as many at once as are not large.

    Yields:
        List[Piece]: A batch, of at least one piece.
    """
    batch, size = [], 0
    for piece in pieces(tensors):
        part = piece.of(tensors)
        if batch and size + part.numel() > at_once(part.device):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += part.numel()
    if batch:
        yield batch


def at_once(device: torch.device) -> int:
    """How many elements at once are neither too slow nor too large."""
    if device.type == 'cpu':
        return _CPU_ELEMENTS * torch.get_num_threads()
    return _GPU_ELEMENTS


def _divide(index: int, tensor: Tensor, elements: int) -> Iterator[Piece]:
    """Into parts of about so many elements along the first, or longest dim."""
    if tensor.numel() <= elements:
        yield Piece(index)
        return
    shape = tensor.shape
    # Slices of the first dim are contiguous memory, but there may be few.
    dim = 0
    if tensor.numel() > elements * shape[0]:
        dim = max(range(tensor.dim()), key=lambda d: shape[d])
    step = max(1, elements * shape[dim] // tensor.numel())
    for start in range(0, shape[dim], step):
        yield Piece(index, dim, start, min(step, shape[dim] - start))

"""Means in host memory, for devices that have none to spare."""
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .pieces import at_once

__all__ = ['OffloadedGroup', 'host_memory', 'is_dense']


class OffloadedGroup:
    """Means in host memory, of tensors of one device and dtype.

    For each chunk: upload mu, blend it with w on the device, download it. Of
    the device's memory that takes two small buffers, and every mean is, bit
    for bit, the one that would have been computed there.

    The chunks alternate between two streams, so that one's upload runs beside
    the other's download, and both beside the next forward and backward pass.
    What changes the tensors has to :meth:`wait` before, and what reads the
    means to :meth:`finish`. On a CPU all is done at once.

    Args:
        means (Sequence[Tensor]): Of :func:`host_memory`.
        tensors (Sequence[Tensor]): The live tensors, dense.
    """

    def __init__(self, means: Sequence[Tensor], tensors: Sequence[Tensor]):
        self.tensors = list(tensors)
        self.device = tensors[0].device
        total = sum(tensor.numel() for tensor in tensors)
        self.flat = means[0].as_strided((total, ), (1, ), 0)
        size = min(total, at_once(self.device))
        self.chunks = list(_chunks(tensors, size))
        self.buffers = [
            torch.empty(size, dtype=self.flat.dtype, device=self.device)
            for _ in range(min(2, len(self.chunks)))
        ]
        self.streams: list[Any] = []
        if self.device.type != 'cpu':
            self.streams = [
                self._module().Stream(self.device) for _ in self.buffers
            ]

    def copy_(self) -> None:
        """``mu <- w``."""
        self._pass(None)

    def blend_(self, weight: float) -> None:
        """``mu <- mu + weight * (w - mu)``."""
        self._pass(weight)

    def wait(self) -> None:
        """Let the device's further work begin after the newest sample."""
        for stream in self.streams:
            self._current().wait_stream(stream)

    def finish(self) -> None:
        """Wait here until the newest sample is in the host's memory."""
        for stream in self.streams:
            stream.synchronize()

    def _pass(self, weight: float | None) -> None:
        for stream in self.streams:
            stream.wait_stream(self._current())
        for number, (start, segments) in enumerate(self.chunks):
            lane = number % len(self.buffers)
            with self._on(lane):
                # Anew each time: the parameters' data may have been replaced.
                live = [self._part(*segment) for segment in segments]
                mu = self.buffers[lane][:sum(part.numel() for part in live)]
                host = self.flat[start:start + len(mu)]
                parts = mu.split([part.numel() for part in live])
                if weight is None:
                    torch._foreach_copy_(parts, live)
                else:
                    mu.copy_(host, non_blocking=True)
                    live = [part.to(mu.dtype) for part in live]
                    torch._foreach_lerp_(parts, live, weight)
                host.copy_(mu, non_blocking=True)

    def _part(self, index: int, start: int, length: int) -> Tensor:
        """Elements of a tensor, in the order of its memory."""
        tensor = self.tensors[index].detach()
        return tensor.as_strided((length, ), (1, ),
                                 tensor.storage_offset() + start)

    def _on(self, lane: int) -> Any:
        if not self.streams:
            return nullcontext()
        return self._module().stream(self.streams[lane])

    def _current(self) -> Any:
        return self._module().current_stream(self.device)

    def _module(self) -> Any:
        """``torch.cuda``, or what another accelerator has in its place."""
        return getattr(torch, self.device.type)


def host_memory(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Uninitialised tensors of one allocation, pinned for an accelerator.

    Args:
        tensors (Sequence[Tensor]): On one device, dense.
        dtype (torch.dtype): Of the result.

    Returns:
        List[Tensor]: For each tensor, one of its shape and strides, in order.
    """
    total = sum(tensor.numel() for tensor in tensors)
    flat = torch.empty(
        total, dtype=dtype, pin_memory=tensors[0].device.type != 'cpu')
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [
        part.as_strided(tensor.shape, tensor.stride())
        for part, tensor in zip(parts, tensors)
    ]


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor's elements fill its memory, in any order."""
    dense = torch.empty_like(tensor, device='meta')
    return dense.stride() == tensor.stride()


def _chunks(tensors: Sequence[Tensor],
            size: int) -> Iterator[tuple[int, list[tuple]]]:
    """The tensors' elements one after another, so many at once.

    Yields:
        Tuple[int, List[Tuple[int, int, int]]]: Where the chunk begins, and
        its segments: the tensor's number, the first element and the length.
    """
    begin, room, segments = 0, size, []
    for index, tensor in enumerate(tensors):
        start = 0
        while start < tensor.numel():
            length = min(room, tensor.numel() - start)
            segments.append((index, start, length))
            start += length
            room -= length
            if not room:
                yield begin, segments
                begin, room, segments = begin + size, size, []
    if segments:
        yield begin, segments

"""A convolution whose backward pass skips the zeros, on one CPU thread.

Dense kernels gain nothing by zeros. These, in ``sparse.cpp``, add for each
number of the gradient that is not zero a row of channels to another, which
costs about twice as much for each, and nothing for a zero.
"""
import ctypes
import functools
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ['build_kernels', 'sparse_conv2d']

# Below this share of zeros torch's dense kernels are as fast: measured, see
# configs/gradient_pruning/README.md.
BREAK_EVEN = 0.6


@functools.cache
def build_kernels() -> ctypes.CDLL:
    """Compile ``sparse.cpp`` for this CPU, which takes two seconds.

    Raises:
        ValueError: There is no g++, or it fails.
    """
    source = Path(__file__).with_name('sparse.cpp')
    with TemporaryDirectory() as folder:
        library = Path(folder, 'sparse.so')
        try:
            subprocess.run(['g++', '-O3', '-march=native', '-shared', '-fPIC',
                            '-o', str(library), str(source)],
                           check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, 'stderr', None) or error
            raise ValueError(
                'sparse kernels cannot be built, because g++ does not compile '
                f'them: {why}; install it, or leave out sparse.') from error
        return ctypes.CDLL(str(library))


def sparse_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None,
                  stride: tuple[int, int], padding: tuple[int, int],
                  dilation: tuple[int, int]) -> Tensor:
    """``torch.nn.functional.conv2d``, with a backward pass that skips zeros.

    Where fewer than 60 % of the gradient are zeros, torch's own is taken.

    Args:
        x (Tensor): (N, I, H, W), float32, on a CPU, of fewer than 2^31
            numbers when padded.
        weight (Tensor): (O, I, KH, KW), and I a multiple of 16.
        bias (Tensor, optional): (O, ).
        stride, padding, dilation (Tuple[int, int]): As in conv2d.

    Returns:
        Tensor: (N, O, OH, OW), in the channels-last format, as its gradients
        are: so all that follows has it too, and nothing is copied twice.
    """
    return _SparseConv2d.apply(x, weight, bias, stride, padding, dilation)


class _SparseConv2d(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None,
                *geometry: tuple[int, int]) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return functional.conv2d(x, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if grad.count_nonzero() > (1 - BREAK_EVEN) * grad.numel():
            found = torch.ops.aten.convolution_backward(
                grad, x, weight, grad.shape[1:2], *ctx.geometry, False, [0, 0],
                1, needs)
        else:
            rows = _Rows(grad, x.shape, weight.shape, *ctx.geometry)
            found = (rows.backward_input(weight) if needs[0] else None,
                     rows.backward_weight(x) if needs[1] else None,
                     grad.sum((0, 2, 3)) if needs[2] else None)
        return (*found, None, None, None)


@functools.lru_cache(256)
def _places(grid: tuple, step: tuple, padded: tuple) -> Tensor:
    """Where in the padded input the pixels of a grid are."""
    n, y, x = torch.meshgrid(
        *(torch.arange(size) * s for size, s in zip(grid, step)),
        indexing='ij')
    _, h, w, channels = padded
    return (((n * h + y) * w + x) * channels).flatten().int()


class _Rows:
    """A gradient as rows of channels, and where in the input each belongs."""

    def __init__(self, grad: Tensor, x: torch.Size, weight: torch.Size,
                 stride: tuple[int, int], padding: tuple[int, int],
                 dilation: tuple[int, int]):
        self.grad = grad.permute(0, 2, 3, 1).contiguous()
        self.padding = padding
        self.kernel = weight[2:]
        n, self.channels, h, w = x
        self.padded = (n, h + 2 * padding[0], w + 2 * padding[1],
                       self.channels)
        pixels = (n, *self.grad.shape[1:3])
        self.base = _places(pixels, (1, *stride), self.padded)
        self.offset = _places((1, *self.kernel), (1, *dilation), self.padded)

    def backward_input(self, weight: Tensor) -> Tensor:
        dx = self.grad.new_zeros(self.padded)
        self._call('backward_input', weight.permute(0, 2, 3, 1), dx)
        (_, h, w, _), (top, left) = self.padded, self.padding
        dx = dx[:, top:h - top, left:w - left].permute(0, 3, 1, 2)
        return dx.contiguous(memory_format=torch.channels_last)

    def backward_weight(self, x: Tensor) -> Tensor:
        (top, left), outputs = self.padding, self.grad.shape[3]
        x = functional.pad(x.permute(0, 2, 3, 1),
                           (0, 0, left, left, top, top))
        dw = self.grad.new_zeros(outputs, *self.kernel, self.channels)
        self._call('backward_weight', x, dw)
        return dw.permute(0, 3, 1, 2)

    def _call(self, name: str, by: Tensor, out: Tensor) -> None:
        by = by.contiguous()
        grad, base, offset, by_, out_ = (
            ctypes.c_void_p(t.data_ptr())
            for t in (self.grad, self.base, self.offset, by, out))
        getattr(build_kernels(), name)(
            grad, self.base.numel(), self.grad.shape[3], base, by_,
            self.offset.numel(), offset, self.channels, out_)

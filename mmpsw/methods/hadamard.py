"""Classifiers whose matrix is fixed: Hadamard's, or a random orthogonal one.

Hoffer, Hubara and Soudry 2018, "Fix your classifier: the marginal value of
training the last weight layer", arXiv 1801.04540. For N features x and C
classes

    logits = scale * W x / (||x||_2 + 1e-8) + bias

where one number, scale, and a bias for each class are learned, and W is not:

- Hadamard: W = -H[:C, :N], H of Sylvester's order and of the smallest power
  of two that is >= C and N; scale begins at 1 / sqrt(C), bias uniformly in
  +-1 / sqrt(C).
- orthogonal: W = Q, drawn once; scale begins at 10, bias at 0.

Rows of H that are cut to N columns need not be orthogonal, and repeat where C
is larger than N. Then N columns are drawn instead of the first N, unless the
official code's are asked for.
"""
import warnings
from typing import Any

import numpy as np
import torch
from scipy.linalg import hadamard
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    'FixedOrthogonalConv2d', 'FixedOrthogonalLinear', 'HadamardConv2d',
    'HadamardLinear'
]

_EPS = 1e-8
_DRAWS = 10


class _FixedClassifier(nn.Module):
    """``scale * W x / (||x|| + 1e-8) + bias`` over the dimension ``dim``."""

    dim = -1

    def __init__(self, features: int, classes: int, bias: bool, scale: float,
                 bound: float):
        super().__init__()
        if min(features, classes) < 2:
            raise ValueError(
                f'{type(self).__name__} cannot tell {classes} class(es) by '
                f'{features} feature(s), because with one of either a fixed '
                'matrix leaves nothing but a sign: keep the learned layer.')
        self.features, self.classes = features, classes
        self.scale = nn.Parameter(torch.full((1, ), scale))
        self.bias = nn.Parameter(
            torch.empty(classes).uniform_(-bound, bound)) if bias else None
        self.register_load_state_dict_pre_hook(_explain_other_kind)

    def forward(self, x: Tensor) -> Tensor:
        # The norm in fp32: half precision overflows at 65504, and its
        # smallest number is above epsilon.
        norm = torch.linalg.vector_norm(
            x, dim=self.dim, keepdim=True,
            dtype=torch.promote_types(x.dtype, torch.float32))
        unit = (x / (norm + _EPS)).to(x.dtype)
        logits = self.scale * self._product(unit)
        if self.bias is None:
            return logits
        return logits + self.bias.reshape(-1, *[1] * (-1 - self.dim))

    def _product(self, x: Tensor) -> Tensor:
        matrix = self.matrix.to(x.dtype)
        if self.dim == -1:
            return F.linear(x, matrix)
        return F.conv2d(x, matrix[:, :, None, None])

    def extra_repr(self) -> str:
        return (f'{self.features}, {self.classes}, '
                f'bias={self.bias is not None}')


class HadamardLinear(_FixedClassifier):
    """A linear classifier whose rows are those of a Hadamard matrix.

    The matrix follows from the arguments, and is not in ``state_dict``. It is
    kept as int8, or, where that is less work, as the two Kronecker factors of
    a fast Walsh-Hadamard transform.

    Args:
        in_features (int): N >= 2.
        out_features (int): C >= 2.
        bias (bool): Whether there is a bias. Without one and with features
            >= 0 the first class, whose row is -1 everywhere, never has the
            largest logit. Defaults to True.
        seed (int): Draws the columns, where the first N will not do.
        columns (str): 'best' of the first N and of ten draws, or 'first', as
            in the official code, also where rows are equal then. Defaults to
            'best'.
        first_row (int): The classes have the rows from this one on. 1 leaves
            out the row of ones, which behind a ReLU tells nothing but how
            dense the features are. Defaults to 0, as in the official code.

    Attributes:
        coherence (float): The largest absolute cosine of two rows: 0 where
            they are orthogonal.

    Shape:
        Input ``(*, N)``, output ``(*, C)``.

    Raises:
        ValueError: N or C is 1, N is too small for C different rows, or there
            are too few rows from ``first_row`` on.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True,
                 seed: int = 0, columns: str = 'best', first_row: int = 0):
        bound = max(out_features, 1)**-0.5
        super().__init__(in_features, out_features, bias, bound, bound)
        self.size = 1 << (max(in_features, out_features) - 1).bit_length()
        if columns not in ('best', 'first'):
            raise ValueError(f"columns={columns!r} is not possible: use "
                             "'best' or 'first'.")
        if not 0 <= first_row <= self.size - out_features:
            raise ValueError(
                f'first_row={first_row} is not possible, because '
                f'{out_features} classes need as many of the {self.size} '
                f'rows: use 0 to {self.size - out_features}.')
        self.rows = slice(first_row, first_row + out_features)
        self.official = columns == 'first'
        columns, self.coherence = _choose_columns(
            self.size, in_features, self.rows,
            None if self.official else seed)
        outer, inner = _factors(self.size)
        # Where the transform is faster, as measured in
        # configs/hadamard/README.md: by its multiplications, and where a
        # matrix of millions would be turned from int8 into floats.
        self.fast = self.dim == -1 and in_features * out_features > min(
            2 * self.size * (len(outer) + len(inner)), 1 << 22)
        buffers = dict(
            outer=-outer, inner=inner, columns=columns) if self.fast else dict(
                matrix=-_hadamard(self.size)[self.rows, columns])
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def _product(self, x: Tensor) -> Tensor:
        if not self.fast:
            return super()._product(x)
        if self.features < self.size:
            x = x.new_zeros(*x.shape[:-1], self.size).index_copy(
                -1, self.columns, x)
        return _transform(x, self.outer, self.inner)[..., self.rows]

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, coherence={self.coherence:.3g}'


class FixedOrthogonalLinear(_FixedClassifier):
    """A linear classifier whose matrix is orthogonal, random and fixed.

    Its rows are orthonormal, or, with C > N, its columns. Other than
    Hadamard's it is in ``state_dict``, as a machine rounds it otherwise than
    another, and takes as much memory as a learned one.

    Args:
        in_features (int): N >= 2.
        out_features (int): C >= 2.
        bias (bool): Whether there is a bias. Defaults to True.
        seed (int): Draws the matrix.

    Raises:
        ValueError: N or C is 1.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True,
                 seed: int = 0):
        super().__init__(in_features, out_features, bias, scale=10., bound=0.)
        matrix = nn.init.orthogonal_(
            torch.empty(out_features, in_features, device='cpu'),
            generator=torch.Generator('cpu').manual_seed(seed))
        self.register_buffer('matrix', matrix.to(self.scale.device))


class _Pointwise:
    """The arguments of a convolution, of which only 1 x 1 is supported."""

    dim = -3

    def __init__(self, in_channels: int, out_channels: int,
                 kernel_size: int | tuple[int, int] = 1,
                 stride: int | tuple[int, int] = 1,
                 padding: int | tuple[int, int] = 0,
                 dilation: int | tuple[int, int] = 1, groups: int = 1,
                 bias: bool = True, seed: int = 0, **rows: Any):
        given = dict(kernel_size=kernel_size, stride=stride, padding=padding,
                     dilation=dilation, groups=groups)
        plain = dict(kernel_size=1, stride=1, padding=0, dilation=1, groups=1)
        for name, value in given.items():
            if value not in (plain[name], (plain[name], ) * 2):
                raise ValueError(
                    f'{name}={value} is not possible in a '
                    f'{type(self).__name__}, because it classifies each pixel '
                    f'by its own features: use {name}={plain[name]}, or a '
                    'learned convolution.')
        super().__init__(in_channels, out_channels, bias, seed, **rows)


class HadamardConv2d(_Pointwise, HadamardLinear):
    """A :class:`HadamardLinear` at each pixel, as a 1 x 1 convolution.

    Args:
        in_channels (int): N >= 2.
        out_channels (int): C >= 2.
        kernel_size, stride, padding, dilation, groups: 1, 1, 0, 1 and 1; a
            ValueError otherwise.
        bias (bool): Whether there is a bias. Defaults to True.
        seed, columns, first_row: See :class:`HadamardLinear`.

    Shape:
        Input ``(B, N, height, width)``, output ``(B, C, height, width)``.
    """


class FixedOrthogonalConv2d(_Pointwise, FixedOrthogonalLinear):
    """A :class:`FixedOrthogonalLinear` at each pixel; see HadamardConv2d."""


def _hadamard(size: int) -> Tensor:
    return torch.as_tensor(hadamard(size, dtype=np.int8))


def _factors(size: int) -> tuple[Tensor, Tensor]:
    """Two matrices whose Kronecker product is Hadamard's of this size."""
    half = 1 << (size.bit_length() - 1) // 2
    return _hadamard(half), _hadamard(size // half)


def _transform(x: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
    """The product of (outer x inner) with ``x``, of shape ``(*, size)``.

    A fast Walsh-Hadamard transform in two steps of radix sqrt(size), which
    are matrix products, instead of log2(size) steps of radix 2.
    """
    x = x.reshape(*x.shape[:-1], len(outer), len(inner))
    return (outer.to(x.dtype) @ (x @ inner.to(x.dtype))).flatten(-2)


def _choose_columns(size: int, features: int, rows: slice,
                    seed: int | None) -> tuple[Tensor, float]:
    """The columns of H in which some rows are nearest to orthogonal.

    Without a seed they are the first ones.

    Returns:
        tuple: The columns' indices, and the rows' largest absolute cosine.
    """
    choices = [torch.arange(features)]
    if seed is not None:
        # RandomState's numbers stay the same in all versions of NumPy.
        random = np.random.RandomState(seed)
        choices += [torch.as_tensor(np.sort(random.permutation(size)[
            :features])) for _ in range(_DRAWS)]
    coherences = _coherences(choices, size, rows)
    best = min(coherences)
    if best == 1 and seed is not None:
        raise ValueError(
            f'{rows.stop - rows.start} classes cannot be told by {features} '
            'features of a Hadamard matrix, because no draw of its columns '
            'leaves rows that differ (in more than the sign): give more '
            'features, or keep the learned layer.')
    return choices[coherences.index(best)], best


def _coherences(choices: list[Tensor], size: int,
                rows: slice) -> list[float]:
    """The largest absolute cosine of two of the rows, cut to the columns.

    The product of the rows i and j of H is its row (i xor j): all cosines are
    sums over rows, and those are the transform of the columns' indicator. How
    many of the rows' pairs have an xor is the transform of the square of that
    of the rows' indicator.
    """
    factors = _factors(size)
    taken = torch.zeros(size, dtype=torch.float64)
    taken[rows] = 1
    pairs = _transform(_transform(taken, *factors).square(), *factors) / size
    pairs[0] = 0  # a row with itself
    chosen = torch.stack([torch.zeros_like(taken).index_fill(0, columns, 1.)
                          for columns in choices])
    sums = _transform(chosen, *factors)[:, pairs > 0.5].abs().amax(1)
    return (sums / len(choices[0])).tolist()


def _explain_other_kind(module: nn.Module, state_dict: dict, prefix: str,
                        *_: Any) -> None:
    """Says so, where a checkpoint is of a learned or another fixed layer."""
    held = {name[len(prefix):] for name in state_dict
            if name.startswith(prefix)}
    if not held or held == module.state_dict().keys():
        return
    kind = 'a learned' if 'weight' in held else 'another fixed'
    warnings.warn(
        f"'{prefix[:-1]}' in the checkpoint is {kind} classifier, which a "
        f'{type(module).__name__} cannot take over, because its own matrix is '
        'fixed: it has to be trained anew. To use the checkpoint as it is, '
        'take the config that it was trained with.', stacklevel=2)

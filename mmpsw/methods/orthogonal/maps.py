"""The six maps from R to Q, and what leads gradients back.

A subclass of :class:`Stack` is a map. Neurons are rows.
"""
import math
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

__all__ = ['MAPS', 'Cayley', 'Layer', 'Stack', 'descend', 'newton_steps',
           'penalty']


class Layer:
    """One weight, and where in its stack it lies."""

    group, moves = 0, False
    version: int | None = None

    def __init__(self, name: str, weight: Tensor, share: float | None):
        self.name, self.weight = name, weight
        self.c_out, self.d = len(weight), weight[0].numel()
        self.stochastic = share is not None
        self.size = (max(2, round(share * self.d)) if self.stochastic else
                     self.d)
        self.rows: Tensor | None = None

    def draw(self, generator: torch.Generator) -> None:
        """Other rows, of W0; the optimizer's momentum goes on."""
        drawn = torch.randperm(self.d, generator=generator, device='cpu')
        self.rows = drawn[:self.size].to(self.weight.device)

    def chosen(self) -> Tensor:
        """What is turned of the weight, (c_out, d)."""
        neurons = self.weight.detach().flatten(1)
        return neurons[:, self.rows] if self.stochastic else neurons


class Stack:
    """Layers whose R have one size, all of them by the same calls.

    A subclass is a map, ``q``. This one leads gradients back by autograd.
    Stochastic layers are the last ones: of their weights only some columns
    are turned, whose numbers in ``full``, the whole weights, are ``index``.
    """

    trains_r = True  # whether R is the optimizer's

    def __init__(self, layers: list[Layer]):
        layers.sort(key=lambda layer: (layer.rows is not None, layer.c_out))
        self.layers = layers
        weight, size = layers[0].weight, layers[0].size
        self.r = weight.new_zeros(len(layers), size, size)
        self.grad, self.product = (torch.zeros_like(self.r) for _ in range(2))
        c_out = sum(layer.c_out for layer in layers)
        self.base = weight.new_zeros(c_out, size)
        self.grads, self.merged = (torch.zeros_like(self.base)
                                   for _ in range(2))
        drawn = [layer for layer in layers if layer.rows is not None]
        self.full = weight.new_zeros(sum(x.weight.numel() for x in drawn))
        self.full_grads = torch.zeros_like(self.full)
        first = c_out - sum(layer.c_out for layer in drawn)
        self.drawn_grads, self.drawn_merged = (
            rows[first:].view(-1) for rows in (self.grads, self.merged))
        self.parts = [self._part(c_out, list(group)) for c_out, group in
                      groupby(range(len(layers)),
                              key=lambda i: layers[i].c_out)]
        self._hand_out()
        self.take_rows()

    @staticmethod
    def q(r: Tensor) -> Tensor:
        """Q (..., d, d) of R."""
        raise NotImplementedError

    @staticmethod
    def start(r: Tensor) -> Tensor:
        """R where it starts at random, from one of N(0, 1)."""
        return r

    @staticmethod
    def identity(r: Tensor) -> Tensor:
        """R whose Q is the identity."""
        return _eye(r).expand_as(r)

    @torch.enable_grad()
    def update(self, anew: bool = False) -> None:
        """Q, after R has moved."""
        self.leaf = self.r.detach().requires_grad_()
        self.map = type(self).q(self.leaf)

    def turn(self) -> None:
        """``N0 Q^T``."""
        q_t = self.map.detach().mT
        for part in self.parts:
            torch.bmm(part.base, q_t[part.layers], out=part.merged)
        self._scatter()

    def turn_back(self, layer: Layer, rows: Tensor) -> Tensor:
        """``N Q``, which is N0."""
        return rows @ self.map.detach()[layer.place]

    def pull(self, groups: list[dict]) -> None:
        """R's gradient from those of the neurons."""
        self._lead_back()
        grad, = torch.autograd.grad(self.map, self.leaf, self.product)
        self.grad.copy_(grad)

    def errors(self) -> list[float]:
        """The largest entry of ``|Q^T Q - I|`` of each layer."""
        q = self._current()
        return (q.mT @ q - _eye(q)).abs().amax((1, 2)).tolist()

    def kept(self) -> dict[str, Tensor]:
        """What a resume needs beside R and N0, for all layers together."""
        return {}

    def take_rows(self) -> None:
        """Learn which rows the stochastic layers have drawn."""
        index, first = [], 0
        for layer in self.layers:
            if layer.rows is not None:
                starts = torch.arange(layer.c_out, device=self.r.device)
                index.append((starts[:, None] * layer.d + layer.rows
                              ).flatten() + first)
                first += layer.weight.numel()
        self.index = torch.cat(index) if index else None

    def _current(self) -> Tensor:
        return type(self).q(self.r)

    def _lead_back(self) -> None:
        """To Q: ``dL/dN^T N0``."""
        self._gather()
        for part in self.parts:
            torch.bmm(part.grads.mT, part.base, out=part.product)

    def _gather(self) -> None:
        if self.index is not None:
            torch.index_select(self.full_grads, 0, self.index,
                               out=self.drawn_grads)

    def _scatter(self) -> None:
        if self.index is not None:
            self.full.index_copy_(0, self.index, self.drawn_merged)

    def _part(self, c_out: int, places: list[int]) -> SimpleNamespace:
        """Views of the layers that have as many neurons, (l, c_out, d)."""
        part = SimpleNamespace(
            layers=slice(places[0], places[-1] + 1), c_out=c_out)
        part.product = self.product[part.layers]
        for name in ('base', 'grads', 'merged'):
            setattr(part, name, self._rows(getattr(self, name), part))
        return part

    def _rows(self, rows: Tensor, part: SimpleNamespace) -> Tensor:
        first = sum(layer.c_out for layer in self.layers[:part.layers.start])
        count = part.c_out * (part.layers.stop - part.layers.start)
        return rows[first:first + count].view(-1, part.c_out, rows.shape[-1])

    def _hand_out(self) -> None:
        """To each layer its part of what is here."""
        row = number = 0
        for place, layer in enumerate(self.layers):
            layer.stack, layer.place = self, place
            layer.r, layer.r_grad = self.r[place], self.grad[place]
            end, shape = row + layer.c_out, layer.weight.shape
            layer.base, layer.merged = self.base[row:end], self.merged[row:end]
            source, target = self.grads[row:end], layer.merged
            if layer.rows is not None:
                here = slice(number, number + layer.weight.numel())
                source, target = self.full_grads[here], self.full[here]
                number = here.stop
            layer.source, layer.target = source.view(shape), target.view(shape)
            row = end


class Cayley(Stack):
    """``(I + A)(I - A)^-1``, ``A = triu(R) - triu(R)^T``.

    Q, which is 2 (I - A)^-1 - I, is never formed: with Z = N0 (I - A)^-T the
    neurons are 2 Z - N0. With Y = G (I - A)^-1, where G is their gradient, R's
    is the upper triangle of 2 (Y^T Z - Z^T Y).

    On a CPU I - A is factorised, and inverted where there are many more
    neurons than rows. A GPU has no fast LU of many matrices: there the inverse
    X is kept, and refined by Newton's steps: with E = I - (I - A) X it becomes
    X (I + E) (I + E^2) (I + E^4) ..., by as many factors as the last update's
    E^2 demands.
    """

    def __init__(self, layers: list[Layer]):
        super().__init__(layers)
        self.refined = self.refines(self.r)
        self.r_t, self.product_t = self.r.mT, self.product.mT
        self.z, self.y = (torch.zeros_like(self.base) for _ in range(2))
        # I - A, until the gradient's product takes its place.
        self.matrix = self.product
        self.diagonal = self.matrix.diagonal(dim1=1, dim2=2)
        self.eye = _eye(self.r).expand_as(self.r)
        self.residual, self.steps, self.at = math.inf, 0, 0
        for part in self.parts:
            part.z, part.y = (self._rows(x, part) for x in (self.z, self.y))
            part.y_t = part.y.mT
            part.wide = self.refined or part.c_out >= 2 * self.r.shape[-1]
        if self.refined:
            self.powers = torch.zeros_like(self.r), self.matrix
            self.inverses = [torch.zeros_like(self.r) for _ in range(2)]
            for part in self.parts:
                part.inverses = [(x[part.layers], x[part.layers].mT)
                                 for x in self.inverses]
            return
        self.lu = torch.empty_like(self.r).mT  # LAPACK's order
        self.pivots = torch.empty_like(self.r[..., 0], dtype=torch.int32)
        self.info = self.pivots[:, 0].clone()
        for part in self.parts:
            part.lu, part.pivots = (
                self.lu[part.layers], self.pivots[part.layers])
            if part.wide:
                inverse = torch.empty_like(part.product).mT
                part.eye = self.eye[part.layers]
                part.inverses = [(inverse, inverse.mT)]

    @staticmethod
    def refines(r: Tensor) -> bool:
        """Whether to keep the inverse."""
        return r.is_cuda

    @staticmethod
    def q(r: Tensor) -> Tensor:
        """With the graph that the class does without."""
        a = r.triu(1)
        a = a - a.mT
        eye = _eye(r)
        return torch.linalg.solve_ex(eye - a, eye + a).result

    @staticmethod
    def start(r: Tensor) -> Tensor:
        """Its upper triangle, as the other has no gradient."""
        return r.triu(1)

    @staticmethod
    def identity(r: Tensor) -> Tensor:
        """A = 0."""
        return torch.zeros_like(r)

    def update(self, anew: bool = False) -> None:
        """Factorise I - A, or see how far from its inverse X is."""
        torch.sub(self.r_t, self.r, out=self.matrix)
        self.diagonal.fill_(1)
        if self.refined:
            x = self.inverses[self.at]
            e, square = self.powers
            torch.baddbmm(self.eye, self.matrix, x, alpha=-1, out=e)
            self.steps = 0 if anew else newton_steps(
                self.residual, torch.finfo(self.r.dtype).eps)
            if not self.steps:
                x.copy_(torch.linalg.inv_ex(self.matrix).inverse)
            torch.bmm(e, e, out=square)
            return
        torch.linalg.lu_factor_ex(
            self.matrix, out=(self.lu, self.pivots, self.info))
        for part in self.parts:
            if part.wide:
                torch.linalg.lu_solve(part.lu, part.pivots, part.eye,
                                      out=part.inverses[0][0])

    def turn(self) -> None:
        """``2 Z - N0``."""
        for step in range(self.steps):
            e, x = self.powers[step % 2], self.inverses[self.at]
            if step > 1:
                torch.bmm(self.powers[1 - step % 2],
                          self.powers[1 - step % 2], out=e)
            self.at = 1 - self.at
            torch.baddbmm(x, x, e, out=self.inverses[self.at])
        self.steps = 0
        for part in self.parts:
            self._divide(part, part.base, True, part.z)
        torch.lerp(self.base, self.z, 2., out=self.merged)
        self._scatter()

    def turn_back(self, layer: Layer, rows: Tensor) -> Tensor:
        """``N Q = 2 N (I - A)^-1 - N``."""
        at = layer.place
        divided = (rows @ self.inverses[self.at][at] if self.refined else
                   torch.linalg.lu_solve(self.lu[at], self.pivots[at], rows,
                                         left=False))
        return 2 * divided - rows

    def pull(self, groups: list[dict]) -> None:
        """``triu(2 (Y^T Z - Z^T Y), 1)``."""
        self._gather()
        for part in self.parts:
            self._divide(part, part.grads, False, part.y)
            torch.baddbmm(part.product, part.y_t, part.z, beta=0, alpha=2,
                          out=part.product)
        torch.sub(self.product, self.product_t, out=self.grad)
        self.grad.triu_(1)

    def kept(self) -> dict[str, Tensor]:
        """X, where it is refined."""
        return dict(inverse=self.inverses[self.at]) if self.refined else {}

    def _divide(self, part: SimpleNamespace, rows: Tensor, transposed: bool,
                out: Tensor) -> None:
        """``rows (I - A)^-1``, or by its transpose."""
        if part.wide:
            torch.bmm(rows, part.inverses[self.at][transposed], out=out)
        else:
            torch.linalg.lu_solve(part.lu, part.pivots, rows, left=False,
                                  adjoint=transposed, out=out)

    def _current(self) -> Tensor:
        return 2 * self.inverses[self.at] - self.eye if (
            self.refined) else self.q(self.r)


class GramSchmidt(Stack):
    """Gram-Schmidt on R's rows."""

    @staticmethod
    def q(r: Tensor) -> Tensor:
        """The transposed Q of R^T's QR."""
        return _qr(r.mT).mT


class Householder(Stack):
    """R's QR by d - 1 reflections: ``det Q = (-1)^(d-1)``."""

    @staticmethod
    def q(r: Tensor) -> Tensor:
        """The last entry of the triangle's diagonal may be negative."""
        q = _qr(r)
        # det itself is 0 in fp32, from 384 rows on: it underflows on the way.
        sign = torch.linalg.slogdet(q.detach()).sign
        last = torch.ones_like(q[..., 0, :])
        last[..., -1] = sign * (-1)**(r.shape[-1] - 1)
        return q * last[..., None, :]


class Loewdin(Stack):
    """Loewdin's symmetric orthogonalisation."""

    @staticmethod
    def q(r: Tensor) -> Tensor:
        """``U V^T`` of R's SVD."""
        return _Polar.apply(r)


class Regulariser(Stack):
    """R itself, which a penalty in the loss keeps near orthogonal."""

    @staticmethod
    def q(r: Tensor) -> Tensor:
        """R."""
        return r

    def turn_back(self, layer: Layer, rows: Tensor) -> Tensor:
        """``N R^-T``."""
        return torch.linalg.solve(self.r[layer.place].mT, rows, left=False)

    def pull(self, groups: list[dict]) -> None:
        """With that of the penalty."""
        self._lead_back()
        with torch.enable_grad():
            r = self.r.detach().requires_grad_()
            grad, = torch.autograd.grad(penalty(r).sum(), r)
        torch.add(self.product, grad, out=self.grad)


class GradientDescent(Stack):
    """Q itself, which :func:`descend` moves.

    Its rate is 0.02, times a fifth where the optimizer's falls to a tenth.
    """

    trains_r = False

    def __init__(self, layers: list[Layer]):
        super().__init__(layers)
        self.momentum = torch.zeros_like(self.r)

    @staticmethod
    def q(r: Tensor) -> Tensor:
        """R."""
        return r

    def pull(self, groups: list[dict]) -> None:
        """Move Q at once, of the layers that have a gradient."""
        self._lead_back()
        self.grad.copy_(self.product)
        rates = []
        for layer in self.layers:
            group = groups[layer.group]
            decayed = group['lr'] / (group['initial_lr'] or 1)
            # decayed^log10(5) is 0.2 where decayed is 0.1
            rates.append(0.02 * decayed**math.log10(5))
        moved = [[[layer.moves]] for layer in self.layers]
        new = descend(self.r, self.momentum, self.grad,
                      self.r.new_tensor(rates)[:, None, None])
        for old, one in zip((self.r, self.momentum), new):
            old.copy_(torch.where(self.r.new_tensor(moved).bool(), one, old))

    def kept(self) -> dict[str, Tensor]:
        """The momentum."""
        return dict(momentum=self.momentum)


MAPS: dict[str, type[Stack]] = dict(
    cayley=Cayley, gram_schmidt=GramSchmidt, householder=Householder,
    loewdin=Loewdin, regulariser=Regulariser, gradient_descent=GradientDescent)


def newton_steps(residual: float, eps: float) -> int:
    """How many factors ``I + E^(2^k)`` leave an error below ``eps``.

    ``residual`` is ``||E^2||_F`` of the update before, which bounds the
    largest singular value of E much closer than ``||E||_F^2``; E may double. 0
    where it is too large.
    """
    if not residual < 0.1:
        return 0
    return 1 + max(1, math.ceil(math.log2(
        math.log(eps) / math.log(max(4 * residual, eps)))))


def penalty(r: Tensor) -> Tensor:
    """What 'regulariser' adds to the loss: ``0.1 ||R R^T - I||_F``."""
    return 0.1 * torch.linalg.matrix_norm(r @ r.mT - _eye(r))


def descend(q: Tensor, momentum: Tensor, grad: Tensor,
            lr: float | Tensor) -> tuple[Tensor, Tensor]:
    """One update of orthogonality-preserving gradient descent.

    A Cayley transform's fixed point, iterated twice. What two iterations
    leave (2e-3 in a thousand steps) a Newton-Schulz step takes away: it
    squares Q's distance from the orthogonal matrices.

    Returns:
        Tuple[Tensor, Tensor]: The next Q, and the next momentum.
    """
    momentum = 0.9 * momentum - grad
    half = momentum @ q.mT - 0.5 * q @ (q.mT @ momentum @ q.mT)
    omega = half - half.mT
    size = torch.linalg.matrix_norm(omega, keepdim=True)
    a = (1 / (size + 1e-8)).clamp(max=lr)
    y = q + a * omega @ q
    for _ in range(2):
        y = q + a / 2 * omega @ (q + y)
    return 1.5 * y - 0.5 * y @ (y.mT @ y), omega @ q


class _Polar(torch.autograd.Function):
    """``U V^T``, whose gradient the SVD's own would lose.

    That divides by differences of singular values, this by their sums.
    """

    @staticmethod
    def forward(ctx: Any, r: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(r)
        ctx.save_for_backward(u, s, vh)
        return u @ vh

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        u, s, vh = ctx.saved_tensors
        turned = u.mT @ grad @ vh.mT
        sums = s[..., :, None] + s[..., None, :]
        return u @ ((turned - turned.mT) / sums) @ vh


def _qr(r: Tensor) -> Tensor:
    """The Q of a QR whose diagonal is positive."""
    q, upper = torch.linalg.qr(r)
    signs = upper.diagonal(dim1=-2, dim2=-1).detach().sign()
    return q * signs[..., None, :]


def _eye(r: Tensor) -> Tensor:
    return torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)

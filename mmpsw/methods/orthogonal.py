"""Orthogonal over-parameterised training, OPT (Liu et al. 2021).

A layer's neurons are the columns of ``W = Q W0``: W0 (d, c_out) is random and
fixed, and what is learned is the orthogonal Q (d, d), which turns all of them
together. So the angles between them, and their hyperspherical energy, stay
what they were. d is k k c_in; its rows are ordered kh, kw, c_in.

    Q = map(R)                                  R (d, d) is what is trained
    dL/dR = (dQ/dR)^T (dL/dW W0^T)              by the chain rule, and then
    R <- R - lr dL/dR;   W <- Q W0              as the optimizer does it

(arXiv 2004.04690; checked against the authors' code, wy1iu/OPT.)
"""
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ['MAPS', 'OrthogonalConv2d', 'OrthogonalTraining', 'descend',
           'hyperspherical_energy', 'neurons']


def cayley(r: Tensor) -> Tensor:
    """``(I + A)(I - A)^-1``, ``A = triu(R) - triu(R)^T``."""
    a = r.triu(1)
    a = a - a.mT
    eye = _eye(r)
    # The two commute. It has a solution always, and solve would wait for it.
    return torch.linalg.solve_ex(eye - a, eye + a).result


def gram_schmidt(r: Tensor) -> Tensor:
    """Gram-Schmidt on R's rows: the transposed Q of R^T's QR."""
    return _qr(r.mT).mT


def householder(r: Tensor) -> Tensor:
    """R's QR by d - 1 reflections: ``det Q = (-1)^(d-1)``.

    So the last entry of the triangle's diagonal may be negative.
    """
    q = _qr(r)
    last = torch.ones_like(q[0])
    # det itself is 0 in fp32, from 384 rows on: it underflows on the way.
    sign = torch.linalg.slogdet(q.detach()).sign
    last[-1] = sign * (-1)**(len(r) - 1)
    return q * last


def loewdin(r: Tensor) -> Tensor:
    """Loewdin's symmetric orthogonalisation: ``U V^T`` of R's SVD."""
    return _Polar.apply(r)


def free(r: Tensor) -> Tensor:
    """R itself, which a penalty or its own update keeps near orthogonal."""
    return r


MAPS: dict[str, Callable[[Tensor], Tensor]] = dict(
    cayley=cayley, gram_schmidt=gram_schmidt, householder=householder,
    loewdin=loewdin, regulariser=free, gradient_descent=free)


def penalty(r: Tensor) -> Tensor:
    """What 'regulariser' adds to the loss: ``0.1 ||R R^T - I||_F``."""
    return 0.1 * torch.linalg.matrix_norm(r @ r.mT - _eye(r))


def descend(q: Tensor, momentum: Tensor, grad: Tensor,
            lr: float) -> tuple[Tensor, Tensor]:
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
    a = (1 / (torch.linalg.matrix_norm(omega) + 1e-8)).clamp(max=lr)
    y = q + a * omega @ q
    for _ in range(2):
        y = q + a / 2 * omega @ (q + y)
    return 1.5 * y - 0.5 * y @ (y.mT @ y), omega @ q


def neurons(weight: Tensor) -> Tensor:
    """A layer's weight (c_out, c_in, kh, kw) as columns: (d, c_out)."""
    return weight.permute(*range(2, weight.dim()), 1, 0).flatten(0, -2)


def hyperspherical_energy(weight: Tensor) -> float:
    """The mean of ``1 / ||w_i / |w_i| - w_j / |w_j| ||`` over i != j.

    Of a layer's weight, in float64 (Liu et al. 2018, arXiv 1805.09298, s = 1).
    """
    unit = nn.functional.normalize(neurons(weight.detach().double()), dim=0)
    return torch.pdist(unit.mT).reciprocal().mean().item()


class OrthogonalConv2d(nn.Conv2d):
    """A convolution that is to be trained by :class:`OrthogonalTraining`.

    Where a model has some, no other layers are. Its weight starts as the
    paper's W0, normal with the variance 2 / (kh kw c_in).
    """

    rotated = False

    def reset_parameters(self) -> None:
        """The paper's start."""
        super().reset_parameters()
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """A ValueError where nothing has taken this layer over."""
        if self.training and not self.rotated:
            raise ValueError(
                'OrthogonalConv2d would be trained as a plain convolution, '
                'because nothing turns its weights: add '
                "custom_hooks = [dict(type='mmpsw.OrthogonalHook')], or use "
                'OrthogonalTraining in a loop of your own.')
        return super().forward(x)


class OrthogonalTraining:
    """Trains Q in place of the weights of some layers, by any optimizer.

    The weights stay the model's plain parameters, so that a forward pass
    costs what it did, and whoever reads, saves or averages them sees
    ``Q W0``. Around each update of the optimizer::

        R.grad = chain rule of weight.grad;  weight.grad = None
        optimizer.step()                     # moves R, which is added to it
        weight = Q W0

    Whoever writes into the weights (an initialisation, a checkpoint, an
    average that is written back) sets W0: it becomes ``Q^-1 W``.

    Stochastic layers (section 4.4 of the paper) draw some of W0's rows, learn
    the map of these from the identity on, and draw others every ``period``
    updates, from the weights that they have come to.

    Args:
        optimizer (Optimizer): It trains the weights. Each R joins the group
            of its weight, with its rate and decay.
        weights (Mapping[str, Tensor]): Of convolutions or linear layers, under
            the names that messages use.
        map (str): 'cayley', 'gram_schmidt', 'householder', 'loewdin',
            'regulariser' (no constraint, but :func:`penalty`) or
            'gradient_descent' (:func:`descend`: its rate is 0.02, times a
            fifth where the optimizer's falls to a tenth, without decay; the
            other parameters' decay is divided by ten).
        stochastic (Collection[str]): The names of the stochastic layers.
        share (float): Which share of its rows such a layer draws.
        period (int): The updates after which it draws others.
        start (str): 'random': R starts as N(0, 1); or 'identity'. Stochastic
            layers, and 'gradient_descent', always start from the identity.
        norms (Collection[nn.Module]): Normalisations whose scale and shift
            start anew at 1 and 0 when rows are drawn, as in the authors'
            code. The paper keeps them.
        seed (int): Of the generator that draws R and the rows.

    Raises:
        ValueError: A setting is unknown, or the optimizer is fused,
            schedule-free, or LpSGD.
    """

    def __init__(self, optimizer: Optimizer, weights: Mapping[str, Tensor],
                 map: str = 'cayley', stochastic: Collection[str] = (),
                 share: float = 0.25, period: int = 750,
                 start: str = 'random', norms: Collection[nn.Module] = (),
                 seed: int = 0):
        _check(optimizer, map, share, period, start)
        self.map, self.period, self.norms = map, period, norms
        self.updates = 0
        self.generator = torch.Generator('cpu').manual_seed(seed)
        self.layers = {
            name: _Layer(name, weight, map, start, self.generator,
                         share if name in stochastic else None)
            for name, weight in weights.items()
        }
        for index, group in enumerate(optimizer.param_groups):
            group.setdefault('initial_lr', group['lr'])
            trained = {id(param) for param in group['params']}
            mine = [layer for layer in self.layers.values()
                    if id(layer.weight) in trained]
            if mine and group.get('p') is not None:
                raise ValueError(
                    'LpSGD cannot train orthogonal maps, because it would put '
                    'their matrices on its sphere: use one of the two, or '
                    'p=None for these layers.')
            for layer in mine:
                layer.group = index
            if map == 'gradient_descent':
                group['weight_decay'] = group.get('weight_decay', 0) / 10
            else:
                group['params'] += [layer.r for layer in mine]
        self._moved: list[_Layer] = []
        optimizer.register_step_pre_hook(self._before_update)
        optimizer.register_step_post_hook(self._after_update)
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Start from the weights that the model has now."""
        for layer in self.layers.values():
            layer.begin()

    def errors(self) -> dict[str, float]:
        """The largest entry of ``|Q^T Q - I|`` of each layer."""
        return {name: layer.error() for name, layer in self.layers.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs, beside the weights and the optimizer's."""
        return dict(
            map=self.map, updates=self.updates,
            generator=self.generator.get_state(),
            layers={name: {key: value.cpu() for key, value in
                           layer.state().items()}
                    for name, layer in self.layers.items()})

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            ValueError: It was saved with another map, or of other layers.
        """
        mine = {name: layer.kind() for name, layer in self.layers.items()}
        theirs = {name: tuple(saved['r'].shape) + ('rows' in saved, )
                  for name, saved in state['layers'].items()}
        if (state['map'], theirs) != (self.map, mine):
            other = sorted(name for name in mine.keys() | theirs.keys()
                           if mine.get(name) != theirs.get(name))
            raise ValueError(
                f"The checkpoint's orthogonal maps are by '{state['map']}', "
                f"and this run's by '{self.map}'"
                f'{" of other sizes in " + ", ".join(other) if other else ""}'
                ': resume with the settings with which the run was begun, or '
                'start a new one from its weights with load_from.')
        self.updates = state['updates']
        self.generator.set_state(state['generator'].cpu())
        for name, saved in state['layers'].items():
            self.layers[name].load(saved)

    def _before_update(self, optimizer: Optimizer, args: tuple,
                       kwargs: dict) -> None:
        if any(one is not None for one in (*args[1:], *kwargs.values())):
            raise ValueError(
                'optimizer.step(closure) cannot train orthogonal maps, '
                'because the closure computes the gradients after they are '
                'needed: call closure() first, and then optimizer.step(). '
                'An optimizer that calls it several times, as LBFGS, cannot '
                'be used.')
        self._moved = [layer for layer in self.layers.values()
                       if layer.weight.grad is not None]
        for layer in self._moved:
            # By its number, as a resume makes other groups.
            layer.pull_gradient_back(optimizer.param_groups[layer.group])

    @torch.no_grad()
    def _after_update(self, *_: Any) -> None:
        for layer in self._moved:
            layer.r.grad = None
            layer.merge()
        self.updates += 1
        drawing = [layer for layer in self.layers.values()
                   if layer.rows is not None]
        if drawing and self.updates % self.period == 0:
            for layer in drawing:
                layer.draw()
            for norm in self.norms:
                nn.init.ones_(norm.weight)
                nn.init.zeros_(norm.bias)


class _Layer:
    """One weight; ``rows`` are None where all of them are turned."""

    def __init__(self, name: str, weight: Tensor, map: str, start: str,
                 generator: torch.Generator, share: float | None):
        self.name, self.weight, self.map = name, weight, map
        self.generator = generator
        self.group = 0
        self.base: Tensor | None = None
        self._product: tuple[Tensor, Tensor] | None = None
        self.d = weight[0].numel()
        size = self.d if share is None else max(2, round(share * self.d))
        self.r = weight.new_zeros(size, size)
        if map == 'gradient_descent':
            self.momentum = torch.zeros_like(self.r)
        self.rows = None
        if share is not None:
            self.draw()
        elif start == 'identity' or map == 'gradient_descent':
            self._start_from_identity()
        else:
            self.r.copy_(torch.randn(size, size, generator=generator,
                                     device='cpu'))

    def draw(self) -> None:
        """Other rows, from the weights as they are; momentum goes on."""
        drawn = torch.randperm(self.d, generator=self.generator, device='cpu')
        self.rows = drawn[:len(self.r)].to(self.weight.device)
        self._start_from_identity()
        self._take()

    def begin(self) -> None:
        """W0 such that ``Q W0`` is W; with a free R, ``W <- R W`` instead."""
        if self._product and self._stands():
            return
        self._take()
        if self.map == 'regulariser':
            self.base.copy_(self._chosen(self.weight))
        self.merge()

    def pull_gradient_back(self, group: dict[str, Any]) -> None:
        """From the weight to R; 'gradient_descent' moves at once.

        Raises:
            ValueError: The gradient is not finite.
        """
        grad, self.weight.grad = self._chosen(self.weight.grad), None
        self._product = self._product or self._multiply()
        if not self._stands():
            self._take()
            self._product = self._multiply()
        r, merged = self._product
        loss = (merged * grad).sum()
        if self.map == 'regulariser':
            loss = loss + penalty(r)
        grad, = torch.autograd.grad(loss, r)
        if not grad.isfinite().all():
            raise ValueError(
                f"{self.name}: the gradient of its orthogonal map's matrix R "
                'is not finite, because the loss is not, or R has become '
                "singular: use a lower learning rate, or map='cayley', which "
                'has an inverse everywhere. The checkpoints are as they were.')
        if self.map != 'gradient_descent':
            self.r.grad = grad
            return
        decayed = group['lr'] / (group['initial_lr'] or 1)
        lr = 0.02 * decayed**math.log10(5)  # 0.2 where this is 0.1
        with torch.no_grad():
            q, momentum = descend(self.r, self.momentum, grad, lr)
            self.r.copy_(q)
            self.momentum.copy_(momentum)

    def merge(self) -> None:
        """``W <- Q W0``."""
        self._product = self._multiply()
        merged = columns = self._product[1].detach()
        if self.rows is not None:
            columns = neurons(self.weight).index_copy(0, self.rows, merged)
        c_out, c_in, *kernel = self.weight.shape
        columns = columns.view(*kernel, c_in, c_out)
        k = len(kernel)
        self.weight.copy_(columns.permute(k + 1, k, *range(k)))

    def error(self) -> float:
        """The largest entry of ``|Q^T Q - I|``."""
        with torch.no_grad():
            q = MAPS[self.map](self.r)
            return (q.mT @ q - _eye(q)).abs().max().item()

    def kind(self) -> tuple:
        """What must be the same for a resume."""
        return (*self.r.shape, self.rows is not None)

    def state(self) -> dict[str, Tensor]:
        """R, W0, and what some layers have beside them."""
        found = dict(r=self.r, base=self.base)
        if self.rows is not None:
            found['rows'] = self.rows
        if self.map == 'gradient_descent':
            found['momentum'] = self.momentum
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        for key, value in state.items():
            if key == 'rows':
                self.rows = value.to(self.weight.device)
            else:
                getattr(self, key).copy_(value)
        self._product = None

    def _stands(self) -> bool:
        """Whether the weights are as :meth:`merge` has left them."""
        return torch.equal(self._product[1].detach(),
                           self._chosen(self.weight))

    def _start_from_identity(self) -> None:
        self.r.copy_(torch.zeros_like(self.r) if self.map == 'cayley' else
                     _eye(self.r))

    @torch.no_grad()
    def _take(self) -> None:
        """W0 from the weights, which somebody else has written."""
        q = MAPS[self.map](self.r)
        base = torch.linalg.solve(q, self._chosen(self.weight))
        # A resumed run multiplies in the same order only in the same layout.
        self.base = base.contiguous()
        self._product = None

    @torch.enable_grad()
    def _multiply(self) -> tuple[Tensor, Tensor]:
        """R, and ``Q W0`` with the graph that leads back to it."""
        r = self.r.detach().requires_grad_()
        return r, MAPS[self.map](r) @ self.base

    def _chosen(self, weight: Tensor) -> Tensor:
        columns = neurons(weight.detach())
        return columns if self.rows is None else columns[self.rows]


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
        return u @ ((turned - turned.mT) / (s[:, None] + s)) @ vh


def _qr(r: Tensor) -> Tensor:
    """The Q of a QR whose diagonal is positive."""
    q, upper = torch.linalg.qr(r)
    return q * upper.diagonal().detach().sign()


def _eye(r: Tensor) -> Tensor:
    return torch.eye(len(r), dtype=r.dtype, device=r.device)


def _check(optimizer: Optimizer, map: str, share: float, period: int,
           start: str) -> None:
    if map not in MAPS:
        raise ValueError(f'map={map!r} is not known: use one of '
                         f'{", ".join(MAPS)}.')
    if not 0 <= share <= 1:
        raise ValueError(f'share={share!r} is not possible, because it is a '
                         'share of the rows: use a number in [0, 1].')
    if period < 1:
        raise ValueError(f'period={period!r} is not possible, because it '
                         'counts updates: use an integer >= 1.')
    if start not in ('random', 'identity'):
        raise ValueError(f"start={start!r} is not known: use 'random' or "
                         "'identity'.")
    if any(group.get('fused') for group in optimizer.param_groups):
        raise ValueError(
            'A fused optimizer cannot train orthogonal maps, because it '
            'unscales the gradients of mixed precision inside of its update, '
            'after they are needed: leave out fused=True.')
    if hasattr(optimizer, 'eval'):
        raise ValueError(
            'A schedule-free optimizer cannot train orthogonal maps, because '
            'it evaluates an average of its parameters, and the mean of the '
            'matrices is not that of the weights: use another optimizer.')

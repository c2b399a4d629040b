"""LpSGD: training with each filter on the unit Lp sphere.

Li et al. 2021, arXiv 2103.16013. With ``q = p / (p - 1)``, and norms over each
output filter (all of a weight but its first dimension):

.. code-block:: python

    ghat = g / ||g||_q                     # g: after momentum and Nesterov
    v <- (1 - lr) v - lr ghat;  v <- v / ||v||_q
    w  = sign(v) |v|^(1 / (p - 1))         # so that ||w||_p = 1

The nearer p is to 1, the more of the weights are close to zero. p = 2 is SGD
on the sphere: there w is v.
"""
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ['LpSGD']

# Smaller weights are zeros: subnormal numbers slow a CPU's convolutions down.
_SMALLEST = 1e-30
_TINY = torch.finfo(torch.float32).tiny


class LpSGD(Optimizer):
    """SGD whose groups with a ``p`` train filters on the unit Lp sphere.

    v is the state, and is saved; w follows from it. Whoever else writes w, as
    an average that is written back or other weights that are loaded, makes v
    follow from w at the next step, filter by filter. A weight that is set to
    zero keeps its v, however, so that a mask may hide it and show it again.
    This is noticed by the tensor's version counter, and then by comparing
    values. What is written through ``.data`` is not noticed.

    A filter whose gradient is zero stays where it is.

    Args:
        params (Iterable): Parameters, or groups of them. In a group with a
            ``p`` all are fp32 or fp64 and have two or more dimensions.
        lr (float): The learning rate. On the sphere it is the share of v that
            the (normalised) gradient replaces, and belongs into (0, 1).
        p (float, optional): Greater than 1. None, the default, is plain SGD.
        momentum (float): As in ``torch.optim.SGD``. Defaults to 0.
        nesterov (bool): The same. Defaults to False.
        weight_decay (float): The same, of plain groups only: on the sphere
            the norm is fixed. Defaults to 0.

    Raises:
        ValueError: A setting is out of its range, or a parameter is of
            another kind.
    """

    def __init__(self, params: Iterable, lr: float, p: float | None = None,
                 momentum: float = 0., nesterov: bool = False,
                 weight_decay: float = 0.):
        self._spheres: list[_Spheres] = []
        super().__init__(params, dict(
            lr=lr, p=p, momentum=momentum, nesterov=nesterov,
            weight_decay=weight_decay))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._spheres = []

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as any optimizer does, and check it."""
        super().add_param_group(param_group)
        _check(self.param_groups[-1])

    @torch.no_grad()
    def project(self, names: dict[Tensor, str] | None = None
                ) -> dict[Tensor, Tensor]:
        """Put those weights on the sphere that have no v yet: w / ||w||_p.

        The first step would do it too, after its gradient was computed.

        Args:
            names (Dict[Tensor, str], optional): Names for messages.

        Returns:
            Dict[Tensor, Tensor]: The weights that were put there, and what
            each filter was multiplied by, of shape (c_out, ): the running
            statistics of a batch norm behind it have to follow.

        Raises:
            ValueError: A filter is all zero, and so has no direction.
        """
        new = [w for group in self.param_groups if group['p'] is not None
               for w in group['params']
               if w.requires_grad and 'v' not in self.state[w]]
        for w in new:
            _check_filters(w, (names or {}).get(w, 'a weight'))
        before = {w: w.detach().clone() for w in new}
        factors = {}
        for sphere in self._all_spheres(lambda w: w in before):
            sphere.follow()
            sphere.write()
            for w in sphere.weights:
                first = before[w].flatten(1)
                size = torch.linalg.vector_norm(first, dim=1)
                factors[w] = torch.linalg.vector_norm(
                    w.flatten(1), dim=1) / size
        return {w: factors[w] for w in new}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from another's state.

        Raises:
            ValueError: That is of another optimizer, or of other groups.
        """
        mine, theirs = ([(group.get('p'), len(group['params']))
                         for group in state['param_groups']]
                        for state in (self.state_dict(), state_dict))
        if mine != theirs:
            raise ValueError(
                'LpSGD cannot continue from this state, because '
                + ('it lies on other spheres: ' if any(
                    p for p, _ in theirs) else 'another optimizer made it: ')
                + 'resume with the settings with which the run was begun, or '
                'start a new one from its weights with load_from.')
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [w for w in group['params'] if w.grad is not None]
            if any(w.grad.is_sparse for w in params):
                raise ValueError(
                    'LpSGD cannot use sparse gradients, because it divides '
                    'whole filters by their norm: use sparse=False in the '
                    'embedding.')
            if params and group['p'] is None:
                self._step_plainly(params, group)
        for sphere in self._all_spheres(lambda w: w.grad is not None):
            sphere.step()
        return loss

    def _step_plainly(self, params: list[Tensor], group: dict) -> None:
        grads = [w.grad for w in params]
        if group['weight_decay']:
            grads = torch._foreach_add(
                grads, params, alpha=group['weight_decay'])
        grads = self._with_momentum(params, grads, group)
        torch._foreach_add_(params, grads, alpha=-group['lr'])

    def _with_momentum(self, params: list[Tensor], grads: list[Tensor],
                       group: dict) -> list[Tensor]:
        if not group['momentum']:
            return grads
        buffers = []
        for w in params:
            if 'momentum_buffer' not in self.state[w]:
                self.state[w]['momentum_buffer'] = torch.zeros_like(w)
            buffers.append(self.state[w]['momentum_buffer'])
        torch._foreach_mul_(buffers, group['momentum'])
        torch._foreach_add_(buffers, grads)
        if not group['nesterov']:
            return buffers
        return torch._foreach_add(grads, buffers, alpha=group['momentum'])

    def _all_spheres(self, has: Callable[[Tensor], bool]) -> list['_Spheres']:
        """Those of the weights that ``has`` chooses, of one kind each."""
        kinds: dict[tuple, list] = {}
        for group in self.param_groups:
            weights = [w for w in group['params'] if has(w)]
            if group['p'] is not None and weights:
                kind = (weights[0].dtype, weights[0].device,
                        group['momentum'], group['nesterov'])
                kinds.setdefault(kind, []).append((group, weights))
        found = [next((old for old in self._spheres if old.holds(parts)), None)
                 or _Spheres(parts, self.state) for parts in kinds.values()]
        self._spheres = found
        return found


class _Spheres:
    """All weights of groups with a p, one after the other in flat tensors.

    So the number of operations does not grow with that of the weights. None
    takes memory of the weights' size, which costs a CPU more than to compute.
    The optimizer's state holds views of ``v`` and ``momentum``.
    """

    def __init__(self, parts: list[tuple[dict, list[Tensor]]],
                 state: Mapping[Tensor, dict[str, Tensor]]):
        self.parts, self.state = parts, state
        self.weights = [w for _, weights in parts for w in weights]
        first = self.weights[0]
        count = sum(w.numel() for w in self.weights)
        # work is what becomes of the gradient; out is |.|, what a filter is
        # multiplied by, and then w.
        self.v, self.momentum, self.work, self.out = (
            first.new_zeros(count) for _ in range(4))
        sizes = torch.tensor([[w[0].numel()] for w in self.weights
                              for _ in range(len(w))]).flatten()
        self.lengths = sizes.to(first.device)
        # 1 / sqrt(n): see _sizes.
        self.shares = sizes.to(first).rsqrt_()
        self.filter_of = torch.repeat_interleave(
            torch.arange(len(sizes), dtype=torch.int32), sizes).to(
                first.device)
        self.norms = torch.zeros_like(self.shares)
        self.of_weights = {name: self._views(getattr(self, name))
                           for name in ('v', 'momentum', 'work', 'out')}
        # Of each group: its numbers, and its filters.
        numbers = [sum(w.numel() for w in ws) for _, ws in parts]
        filters = [sum(len(w) for w in ws) for _, ws in parts]
        self.of_groups = {name: getattr(self, name).split(numbers)
                          for name in ('v', 'out')}
        self.group_norms = self.norms.split(filters)
        self.versions: list[int | None] = [None] * len(self.weights)
        for key, views in (('v', self.of_weights['v']),
                           ('momentum_buffer', self.of_weights['momentum'])):
            if key != 'v' and not parts[0][0]['momentum']:
                continue
            for w, view in zip(self.weights, views):
                if key in state[w]:
                    view.copy_(state[w][key])
                state[w][key] = view

    def holds(self, parts: list[tuple[dict, list[Tensor]]]) -> bool:
        """Whether it is of these weights, and their state still its own."""
        weights = [w for _, found in parts for w in found]
        return (list(map(id, weights)) == list(map(id, self.weights))
                and all(mine[0] is group for mine, (group, _) in zip(
                    self.parts, parts))
                and all(self.state[w].get('v') is v
                        for w, v in zip(weights, self.of_weights['v'])))

    def step(self) -> None:
        """One update of all."""
        lrs = [group['lr'] for group, _ in self.parts]
        if not all(0 <= lr < 1 for lr in lrs):
            raise ValueError(
                f'A schedule has set the rate on the sphere to {max(lrs):.4g},'
                ' but it is the share of v that the gradient replaces, and '
                'belongs into [0, 1): use a smaller one, or another schedule.')
        q = [group['p'] / (group['p'] - 1) for group, _ in self.parts]
        self.follow()
        torch._foreach_copy_(self.of_weights['work'],
                             [w.grad for w in self.weights])
        self._add_momentum()
        # In fp32 a gradient of 0.001 has no 15th power: first it is divided
        # by ||g||_2 / n^(1/4), so that even the largest of n is between
        # n^(-1/4) and n^(1/4).
        torch.mul(self.work, self.work, out=self.out)
        scale = self._sum().mul_(self.shares).sqrt_()
        self.work.div_(self._spread(scale.clamp_(min=_TINY)))
        self._norm(self.work, q)
        torch._foreach_mul_(self.group_norms, [-lr for lr in lrs])
        torch._foreach_mul_(self.of_groups['v'], [1 - lr for lr in lrs])
        self.v.addcmul_(self.work, self._spread(self.norms))
        self._norm(self.v, q)
        self.v.mul_(self._spread(self.norms))
        self.write()

    def write(self) -> None:
        """w from v."""
        self._weights()
        torch._foreach_copy_(self.weights, self.of_weights['out'])
        self.versions = [w._version for w in self.weights]

    def follow(self) -> None:
        """Let v follow from each filter that somebody else has written."""
        written = [i for i, w in enumerate(self.weights)
                   if self.versions[i] != w._version]
        if not written:
            return
        self._weights()
        exponents = [group['p'] for group, weights in self.parts
                     for _ in weights]
        for i in written:
            w, p = self.weights[i].detach(), exponents[i]
            v, expected = self.of_weights['v'][i], self.of_weights['out'][i]
            new = torch.where(w == 0, v, _power(w, p - 1))
            new /= _norm(new, p / (p - 1))
            other = (w != 0) & (w != expected)
            v.copy_(torch.where(other.any(_inner(w), keepdim=True), new, v))
            self.versions[i] = w._version

    def _add_momentum(self) -> None:
        group = self.parts[0][0]
        if group['momentum']:
            self.momentum.mul_(group['momentum']).add_(self.work)
            if group['nesterov']:
                self.work.add_(self.momentum, alpha=group['momentum'])
            else:
                self.work.copy_(self.momentum)

    def _norm(self, x: Tensor, q: Sequence[float]) -> None:
        """``1 / ||x||_q`` of each filter into ``norms``; finite for zeros."""
        torch.abs(x, out=self.out)
        torch._foreach_pow_(self.of_groups['out'], q)
        torch.clamp(self._sum(), min=_TINY, out=self.norms)
        torch._foreach_pow_(self.group_norms, [-1 / one for one in q])

    def _weights(self) -> None:
        """``sign(v) |v|^(1 / (p - 1))`` into ``out``."""
        torch.abs(self.v, out=self.out)
        torch._foreach_pow_(self.of_groups['out'],
                            [1 / (group['p'] - 1) for group, _ in self.parts])
        torch.nn.functional.threshold_(
            self.out, _SMALLEST, 0.).copysign_(self.v)

    def _sum(self) -> Tensor:
        return torch.segment_reduce(self.out, 'sum', lengths=self.lengths,
                                    unsafe=True)

    def _spread(self, of_filters: Tensor) -> Tensor:
        """For each weight its filter's number, in ``out``."""
        return torch.index_select(of_filters, 0, self.filter_of, out=self.out)

    def _views(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([w.numel() for w in self.weights])
        return [part.view(w.shape) for part, w in zip(parts, self.weights)]


def _power(x: Tensor, exponent: float) -> Tensor:
    return x.abs().pow_(exponent).copysign_(x)


def _norm(x: Tensor, q: float) -> Tensor:
    """``||x||_q`` of each filter, and a tiny number for one of zeros."""
    largest = x.abs().amax(_inner(x), keepdim=True).clamp_(min=_TINY)
    return (x / largest).abs().pow_(q).sum(_inner(x), keepdim=True).pow_(
        1 / q).mul_(largest).clamp_(min=_TINY)


def _inner(weight: Tensor) -> tuple[int, ...]:
    return tuple(range(1, weight.dim()))


def _check(group: dict[str, Any]) -> None:
    p, lr, momentum = group['p'], group['lr'], group['momentum']
    if p is not None and not (isinstance(p, Real) and 1 < p < math.inf):
        raise ValueError(f'p={p!r} is not possible, because ||w||_p has a '
                         'smooth sphere for 1 < p only: use a number between '
                         '1 and 2, or None for plain SGD.')
    if not (0 <= lr < (math.inf if p is None else 1)):
        raise ValueError(f'lr={lr!r} is not possible'
                         + (': use a number >= 0.' if p is None else
                            ', because on the sphere it is the share of v '
                            'that the gradient replaces: use one in [0, 1).'))
    if not 0 <= momentum < 1 or (group['nesterov'] and not momentum):
        raise ValueError(
            f'momentum={momentum!r}, nesterov={group["nesterov"]!r} is not '
            'possible: use a momentum in [0, 1), above 0 for nesterov.')
    # p / (p - 1) would be a power above 34, at which fp32 overflows.
    if p is not None and p < 1.03 and any(
            weight.dtype == torch.float32 for weight in group['params']):
        raise ValueError(f'p={p!r} is not possible in fp32, because its powers'
                         ' overflow, so that filters would stay: use at least '
                         '1.03, or fp64 weights.')
    for weight in group['params'] if p is not None else ():
        if weight.dim() < 2 or weight.dtype not in (
                torch.float32, torch.float64):
            raise ValueError(
                f'A {weight.dtype} parameter of shape {tuple(weight.shape)} '
                'cannot lie on the sphere, because that takes filters, and '
                'fp32 or fp64 for the powers: use p=None for its group, or '
                'mixed precision, which keeps fp32 weights.')


def _check_filters(weight: Tensor, name: str) -> None:
    zero = (weight == 0).all(dim=_inner(weight)).nonzero().flatten().tolist()
    if zero:
        raise ValueError(
            f'Filter {zero[0]} of {name}, of shape {tuple(weight.shape)}, is '
            'all zero, and so has no direction on the sphere (the first of '
            f'{len(zero)} such): initialise it otherwise, or use p=None for '
            'it.')

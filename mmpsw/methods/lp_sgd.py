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
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ['LpSGD']

# Smaller weights are zeros: subnormal numbers slow a CPU's convolutions down.
_SMALLEST = 1e-30


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
        self._versions: dict[Tensor, int] = {}
        super().__init__(params, dict(
            lr=lr, p=p, momentum=momentum, nesterov=nesterov,
            weight_decay=weight_decay))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._versions = {}

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
        factors = {}
        for group in self.param_groups:
            weights = [w for w in group['params']
                       if w.requires_grad and 'v' not in self.state[w]]
            if group['p'] is None or not weights:
                continue
            for w in weights:
                _check_filters(w, (names or {}).get(w, 'a weight'))
            norms = _norms([w.detach() for w in weights], group['p'])
            self._follow(weights, group['p'])
            v = [self.state[w]['v'] for w in weights]
            torch._foreach_copy_(weights, _weights(v, group['p']))
            self._note(weights)
            factors.update((w, 1 / norm.flatten())
                           for w, norm in zip(weights, norms))
        return factors

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
                'LpSGD cannot go on from this state, because '
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
            if params and group['p'] is None:
                self._step_plainly(params, group)
            elif params:
                self._step_on_sphere(params, group)
        return loss

    def _step_plainly(self, params: list[Tensor], group: dict) -> None:
        grads = [w.grad for w in params]
        if group['weight_decay']:
            grads = torch._foreach_add(
                grads, params, alpha=group['weight_decay'])
        grads = self._with_momentum(params, grads, group)
        torch._foreach_add_(params, grads, alpha=-group['lr'])

    def _step_on_sphere(self, weights: list[Tensor], group: dict) -> None:
        p, lr = group['p'], group['lr']
        if not 0 <= lr < 1:
            raise ValueError(
                f'A schedule has set the rate on the sphere to {lr:.4g}, but '
                'it is the share of v that the gradient replaces, and belongs '
                'into [0, 1): use a smaller one, or another schedule.')
        q = p / (p - 1)
        self._follow(weights, p)
        grads = self._with_momentum(weights, [w.grad for w in weights], group)
        ghat = torch._foreach_div(grads, _norms(grads, q))
        v = [self.state[w]['v'] for w in weights]
        torch._foreach_mul_(v, 1 - lr)
        torch._foreach_add_(v, ghat, alpha=-lr)
        torch._foreach_div_(v, _norms(v, q))
        torch._foreach_copy_(weights, _weights(v, p))
        self._note(weights)

    def _with_momentum(self, params: list[Tensor], grads: list[Tensor],
                       group: dict) -> list[Tensor]:
        if any(grad.is_sparse for grad in grads):
            raise ValueError(
                'LpSGD cannot use sparse gradients, because it divides whole '
                'filters by their norm: use sparse=False in the embedding.')
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

    def _follow(self, weights: Sequence[Tensor], p: float) -> None:
        """Let v follow from each filter that somebody else has written."""
        for w in weights:
            state = self.state[w]
            if 'v' not in state:
                state['v'] = torch.zeros_like(w)
            elif self._versions.get(w) == w._version:
                continue
            v = state['v']
            new = torch.where(w == 0, v, _power(w, p - 1))
            new /= _norms([new], p / (p - 1))[0]
            other = (w != 0) & (w != _weights([v], p)[0])
            torch.where(other.any(_inner(w), keepdim=True), new, v, out=v)

    def _note(self, weights: Iterable[Tensor]) -> None:
        self._versions.update((w, w._version) for w in weights)


def _weights(v: Sequence[Tensor], p: float) -> list[Tensor]:
    """``sign(v) |v|^(1 / (p - 1))``."""
    if p == 2:
        return [one.clone() for one in v]
    size = torch._foreach_abs(v)
    torch._foreach_log_(size)
    torch._foreach_mul_(size, 1 / (p - 1))
    torch._foreach_exp_(size)
    return [torch.nn.functional.threshold_(s, _SMALLEST, 0.).copysign_(one)
            for s, one in zip(size, v)]


def _power(x: Tensor, exponent: float) -> Tensor:
    return x.abs().log_().mul_(exponent).exp_().copysign_(x)


def _norms(tensors: Sequence[Tensor], q: float) -> list[Tensor]:
    """``||x||_q`` of each filter, and a tiny number for one of zeros.

    By the logarithm: in fp32 a gradient of 0.001 has no 15th power.
    """
    logs = torch._foreach_abs(tensors)
    torch._foreach_log_(logs)
    torch._foreach_mul_(logs, q)
    return [(torch.logsumexp(log, _inner(log), keepdim=True) / q).exp_()
            .clamp_(min=torch.finfo(log.dtype).tiny) for log in logs]


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

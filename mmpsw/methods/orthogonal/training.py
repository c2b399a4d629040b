"""The training: what is done around each update of an optimizer."""
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .maps import MAPS, Cayley, Layer, Stack

__all__ = ['OrthogonalConv2d', 'OrthogonalTraining', 'hyperspherical_energy',
           'minimise_energy']

_EXACT = 'donot_use_mm_for_euclid_dist'  # else near neurons are at 0


def hyperspherical_energy(weight: Tensor) -> float:
    """The mean of ``1 / ||w_i / |w_i| - w_j / |w_j| ||`` over i != j.

    Of a layer's weight, in float64 (Liu et al. 2018, arXiv 1805.09298, s = 1).
    """
    unit = nn.functional.normalize(weight.detach().double().flatten(1))
    return torch.pdist(unit).reciprocal().mean().item()


@torch.no_grad()
def minimise_energy(weight: Tensor, steps: int) -> None:
    """The paper's refined start: neurons of norm 1, driven apart, in place.

    By projected gradient descent on their :func:`hyperspherical_energy`, whose
    rate halves where a step does not lower it.
    """
    x = nn.functional.normalize(weight.double().flatten(1))
    if math.isinf(hyperspherical_energy(weight)):
        raise ValueError('The energy cannot be minimised, because two neurons '
                         'are equal, which no gradient drives apart: '
                         'initialise them otherwise.')
    rate, energy = 0.5, math.inf
    for _ in range(steps):
        near = torch.cdist(x, x, compute_mode=_EXACT)
        now = near.fill_diagonal_(math.inf).reciprocal().sum().item()
        if now < energy:
            energy, best = now, x
            pull = near**-3
            force = pull.sum(1, keepdim=True) * x - pull @ x
            force -= (force * x).sum(1, keepdim=True) * x
        else:
            rate /= 2
        x = nn.functional.normalize(best + rate * force / force.norm(
            dim=1).max().clamp(min=1e-30))
    weight.copy_(best.view(weight.shape))


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
    ``N0 Q^T``. Around each update of the optimizer::

        R.grad = chain rule of weight.grad;  weight.grad = None
        optimizer.step()                     # moves R, which is added to it
        weight = N0 Q^T

    Whoever writes into the weights (a checkpoint, an average that is written
    back) sets N0: it becomes ``N Q``. This is noticed by the tensor's version
    counter, and then by comparing values; what is written through ``.data`` is
    not noticed.

    Stochastic layers (section 4.4 of the paper) draw some of W0's rows, learn
    the map of these from the identity on, and draw others every ``period``
    updates, from the weights that they have come to.

    'cayley' waits for no GPU: there a gradient that is not finite is said at
    the next update, or where the state is saved.

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
        seed (int): Of the generator that draws R and the rows.

    Raises:
        ValueError: A setting is unknown, a weight is zero, or the optimizer is
            fused, schedule-free, or LpSGD.
    """

    @torch.no_grad()
    def __init__(self, optimizer: Optimizer, weights: Mapping[str, Tensor],
                 map: str = 'cayley', stochastic: Collection[str] = (),
                 share: float = 0.25, period: int = 750,
                 start: str = 'random', seed: int = 0):
        _check(optimizer, weights, map, share, period, start)
        self.map, self.period = map, period
        self.updates = 0
        self.generator = torch.Generator('cpu').manual_seed(seed)
        self.layers = {name: Layer(name, weight, share if name in stochastic
                                    else None)
                       for name, weight in weights.items()}
        starts = {}
        for name, layer in self.layers.items():
            if layer.stochastic:
                layer.draw(self.generator)
            elif start == 'random' and MAPS[map].trains_r:
                starts[name] = torch.randn(
                    layer.size, layer.size, generator=self.generator,
                    device='cpu')
        kinds: dict[tuple, list[Layer]] = {}
        for layer in self.layers.values():
            weight = layer.weight
            kinds.setdefault((layer.size, weight.dtype, weight.device),
                             []).append(layer)
        self.stacks = [MAPS[map](layers) for layers in kinds.values()]
        for name, layer in self.layers.items():
            layer.r.copy_(MAPS[map].start(starts[name]) if name in starts
                          else MAPS[map].identity(layer.r))
        self._begin()
        self._join(optimizer)
        self._noted: _Later | None = None
        optimizer.register_step_pre_hook(self._before_update)
        optimizer.register_step_post_hook(self._after_update)

    def errors(self) -> dict[str, float]:
        """The largest entry of ``|Q^T Q - I|`` of each layer."""
        found = {layer.name: error for stack in self.stacks
                 for layer, error in zip(stack.layers, stack.errors())}
        return {name: found[name] for name in self.layers}

    def check(self) -> None:
        """Look whether the last gradients were finite.

        Raises:
            ValueError: They were not.
        """
        if self._noted is None:
            return
        sizes, self._noted = self._noted.read(), None
        for stack, size in zip(self.stacks, sizes):
            if not math.isfinite(size):
                name = next(layer.name for layer in stack.layers
                            if not layer.r_grad.isfinite().all())
                raise ValueError(
                    f"{name}: the gradient of its orthogonal map's matrix R "
                    'is not finite, because the loss was '
                    'not, or R has become singular: continue from the last '
                    "checkpoint with a lower learning rate, or map='cayley', "
                    'which has an inverse everywhere.')
        for stack, residual in zip(self._refined(), sizes[len(self.stacks):]):
            stack.residual = residual

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs, beside the weights and the optimizer's.

        Raises:
            ValueError: The last update was not finite.
        """
        self.check()
        layers = {}
        for name, layer in self.layers.items():
            state = dict(r=layer.r, neurons=layer.base)
            if layer.stochastic:
                state['rows'] = layer.rows
            state.update((key, value[layer.place])
                         for key, value in layer.stack.kept().items())
            layers[name] = {key: value.cpu().clone()
                            for key, value in state.items()}
        return dict(
            map=self.map, updates=self.updates, layers=layers,
            residuals=[stack.residual for stack in self._refined()],
            generator=self.generator.get_state())

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            ValueError: It was saved with another map, or of other layers.
        """
        mine = {name: (*layer.r.shape, *layer.base.shape, layer.stochastic)
                for name, layer in self.layers.items()}
        theirs = {name: (*saved['r'].shape, *saved.get('neurons', saved[
            'r']).shape, 'rows' in saved)
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
        self.updates, self._noted = state['updates'], None
        self.generator.set_state(state['generator'].cpu())
        for name, saved in state['layers'].items():
            layer = self.layers[name]
            layer.r.copy_(saved['r'])
            layer.base.copy_(saved['neurons'])
            layer.version = None  # the weights may be loaded before or after
            if layer.stochastic:
                layer.rows = saved['rows'].to(layer.weight.device)
            for key, value in layer.stack.kept().items():
                if key in saved:
                    value[layer.place].copy_(saved[key])
        for stack, residual in zip(self._refined(), state['residuals']):
            stack.residual = residual
        for stack in self.stacks:
            stack.take_rows()
            # A refined inverse is the saved one, unless that was a CPU's.
            if 'inverse' not in stack.kept() or not state['residuals']:
                stack.update(anew=True)
            stack.turn()

    def _begin(self) -> None:
        """N0 such that ``N0 Q^T`` is N; with a free R, ``N <- N R^T``."""
        for layer in self.layers.values():
            layer.target.copy_(layer.weight)
        self._take(self.layers.values())
        if self.map == 'regulariser':
            for layer in self.layers.values():
                layer.base.copy_(layer.chosen())
            for stack in self.stacks:
                stack.turn()
        self._write(self.layers.values())

    def _join(self, optimizer: Optimizer) -> None:
        """Give each R to the optimizer, beside its weight."""
        for index, group in enumerate(optimizer.param_groups):
            group.setdefault('initial_lr', group['lr'])
            trained = {id(param) for param in group['params']}
            mine = [layer for layer in self.layers.values()
                    if id(layer.weight) in trained]
            for layer in mine:
                layer.group = index
            if MAPS[self.map].trains_r:
                group['params'] += [layer.r for layer in mine]
            else:
                group['weight_decay'] = group.get('weight_decay', 0) / 10

    @torch.no_grad()
    def _before_update(self, optimizer: Optimizer, args: tuple,
                       kwargs: dict) -> None:
        if any(one is not None for one in (*args[1:], *kwargs.values())):
            raise ValueError(
                'optimizer.step(closure) cannot train orthogonal maps, '
                'because the closure computes the gradients after they are '
                'needed: call closure() first, and then optimizer.step(). '
                'An optimizer that calls it several times, as LBFGS, cannot '
                'be used.')
        self.check()
        self._notice_writing()
        moved, resting = [], []
        for layer in self.layers.values():
            layer.moves = layer.weight.grad is not None
            (moved if layer.moves else resting).append(layer)
        if resting:
            torch._foreach_zero_([layer.source for layer in resting])
        if moved:
            torch._foreach_copy_([layer.source for layer in moved],
                                 [layer.weight.grad for layer in moved])
        for stack in self._moved():
            # By its number, as a resume makes other groups.
            stack.pull(optimizer.param_groups)
        self._sizes = torch._foreach_norm(
            [stack.grad for stack in self.stacks], math.inf)
        if self.map != 'cayley':  # the others wait for a GPU in any case
            self._note()
            self.check()
        for layer in moved:
            layer.weight.grad = None
            if layer.stack.trains_r:
                layer.r.grad = layer.r_grad

    @torch.no_grad()
    def _after_update(self, *_: Any) -> None:
        moved = [layer for layer in self.layers.values() if layer.moves]
        for layer in moved:
            layer.r.grad = None
        for stack in self._moved():
            stack.update()
        if self.map == 'cayley':
            self._note()
        for stack in self._moved():
            stack.turn()
        self._write(moved)
        self.updates += 1
        drawing = [layer for layer in self.layers.values() if layer.stochastic]
        if drawing and self.updates % self.period == 0:
            for layer in drawing:
                layer.draw(self.generator)
                layer.r.copy_(layer.stack.identity(layer.r))
            for stack in {id(x.stack): x.stack for x in drawing}.values():
                stack.take_rows()
            self._take(drawing)

    def _note(self) -> None:
        """The gradients' sizes and the residuals, for :meth:`check`."""
        residuals = [stack.powers[1] for stack in self._refined()]
        self._noted = _Later(torch.stack([
            *self._sizes, *(torch._foreach_norm(residuals) if residuals
                            else ())]))

    def _notice_writing(self) -> None:
        """Let N0 follow from weights that somebody else has written."""
        written = [layer for layer in self.layers.values()
                   if layer.version != layer.weight._version]
        changed = [layer for layer in written
                   if not torch.equal(layer.merged, layer.chosen())]
        for layer in written:
            layer.target.copy_(layer.weight)
            layer.version = layer.weight._version
        self._take(changed)

    def _take(self, layers: Iterable[Layer]) -> None:
        """N0 from the weights as they are."""
        layers = list(layers)
        stacks = {id(layer.stack): layer.stack for layer in layers}.values()
        for stack in stacks:
            stack.update(anew=True)
        for layer in layers:
            layer.base.copy_(layer.stack.turn_back(layer, layer.chosen()))
        for stack in stacks:
            stack.turn()

    def _write(self, layers: Iterable[Layer]) -> None:
        layers = list(layers)
        if layers:
            torch._foreach_copy_([layer.weight for layer in layers],
                                 [layer.target for layer in layers])
        for layer in layers:
            layer.version = layer.weight._version

    def _moved(self) -> list[Stack]:
        return [stack for stack in self.stacks
                if any(layer.moves for layer in stack.layers)]

    def _refined(self) -> list[Cayley]:
        return [stack for stack in self.stacks
                if getattr(stack, 'refined', False)]


class _Later:
    """Numbers that are read an update later, so that no GPU is waited for."""

    def __init__(self, numbers: Tensor):
        self.numbers = numbers.to('cpu', non_blocking=numbers.is_cuda)
        self.event = (torch.cuda.current_stream(numbers.device).record_event()
                      if numbers.is_cuda else None)

    def read(self) -> list[float]:
        """By then the GPU has computed them, and is busy with others."""
        if self.event is not None:
            self.event.synchronize()
        return self.numbers.tolist()


def _check(optimizer: Optimizer, weights: Mapping[str, Tensor], map: str,
           share: float, period: int, start: str) -> None:
    zero = [name for name, weight in weights.items() if not weight.any()]
    if zero:
        raise ValueError(
            f'{", ".join(zero)}: a weight of zeros cannot be turned, because '
            'it would stay zero for ever: leave it out.')
    for group in optimizer.param_groups:
        if group.get('p') is not None and any(
                param is weight for param in group['params']
                for weight in weights.values()):
            raise ValueError(
                'LpSGD cannot train orthogonal maps, because it would put '
                'their matrices on its sphere: use one of the two, or p=None '
                'for these layers.')
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

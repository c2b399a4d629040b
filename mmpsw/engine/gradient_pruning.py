"""Pruning activation gradients: where mmengine and autograd call it."""
import math
import re
from collections import deque
from collections.abc import Sequence
from importlib.util import find_spec
from statistics import fmean
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.utils import digit_version
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from mmpsw.methods.averaging.numbers import check_integer
from mmpsw.methods.gradient_pruning import (
    Pruner,
    factor_of_rate,
)
from mmpsw.models import unwrapped
from mmpsw.registry import HOOKS

__all__ = ['GradientPruningHook']

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


@HOOKS.register_module()
class GradientPruningHook(Hook):
    """Prunes the activation gradients of convolutions, at random, unbiased.

    Ye et al. 2020, arXiv 1908.00173: :mod:`mmpsw.methods.gradient_pruning`.
    The model stays as it is, with forward and tensor hooks in it while it
    trains; nothing is in the ``state_dict``, and nothing happens where no
    gradients are needed, such as in a validation.

    - Where a normalisation layer takes what a convolution returns, the
      gradient of that output is pruned; elsewhere (a convolution and a ReLU)
      that of the convolution's input. This is seen in the forward pass, so
      that the order of the model's attributes does not matter.
    - A layer's tau is predicted from its last ``window`` iterations, and
      nothing is pruned in its first one. A layer that is used several times
      in an iteration, such as a head on all levels of a pyramid, has one tau,
      from the mean over all of its gradients. So it is with several
      processes: tau is the same on all of them, and the draws differ.
    - The draws are of a generator of its own, whose seed is made of ``seed``,
      the iteration and the rank: a resumed run draws what an uninterrupted
      one does. What tau is predicted from is saved in the checkpoint, under
      ``gradient_pruning``.

    Logged are ``gradient_pruning/zeros``, the share of zeros in the gradients
    at the outputs of the convolutions, which are what their backward passes
    work on. At the end of the run it is said for each layer, and by how much
    the predicted tau was off, as the mean of ``|predicted / true - 1|``; and
    how many multiply-adds of their backward passes have a zero for a factor.

    Zeros do not make torch's kernels any faster: what is gained, for hardware
    that skips them, are multiply-adds: configs/gradient_pruning/README.md.

    Args:
        rate (float): The share of normal gradients that lie below tau, in
            [0, 1). 0 changes nothing. Defaults to 0.9.
        window (int): Iterations from which tau is predicted. Defaults to 5.
        include (str or Sequence[str], optional): Regular expressions, one of
            which must be found in a convolution's name, such as
            ``'backbone.layer4'``. Defaults to all convolutions.
        exclude (str or Sequence[str]): Those of which none may be found.
        seed (int): Of the draws. Defaults to 0.

    Raises:
        ValueError: A setting is out of its range, a pattern finds no
            convolution, the model has none, it is compiled, or another such
            hook prunes the same layer.
    """

    def __init__(self,
                 rate: float = 0.9,
                 window: int = 5,
                 include: str | Sequence[str] = (),
                 exclude: str | Sequence[str] = (),
                 seed: int = 0):
        self.factor = factor_of_rate(rate)
        check_integer('window', window, 1)
        check_integer('seed', seed, 0)
        self.window = window
        self.include = _patterns('include', include)
        self.exclude = _patterns('exclude', exclude)
        self.seed = seed
        self.layers: list[_Layer] = []
        self.handles: list[Any] = []
        self.means: dict[str, list[float]] = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember the means that tau is predicted from."""
        self.means = checkpoint.get('gradient_pruning', {})

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict) -> None:
        """Add them, as plain numbers, to those of other such hooks."""
        checkpoint.setdefault('gradient_pruning', {}).update(
            (layer.name, list(layer.means)) for layer in self.layers)

    def before_train(self, runner: Runner) -> None:
        """Put hooks into the model."""
        if runner.cfg.get('compile'):
            raise ValueError(
                'GradientPruningHook cannot be used with compile, because its '
                'hooks break the graph at each convolution, and it would be '
                'compiled anew whenever tau changes: set compile=False.')
        model = unwrapped(runner.model)
        device = next(model.parameters()).device
        means = self.means if runner.iter else {}  # of a run that goes on
        names = self._chosen(runner)
        self.pruner = _pruner(len(names), device)
        self.layers = [
            _Layer(name, index, self.factor, self.pruner,
                   deque(means.get(name, ()), self.window))
            for index, name in enumerate(names)
        ]
        for layer in self.layers:
            self.handles += layer.attach(model.get_submodule(layer.name))
        self.handles += [
            module.register_forward_pre_hook(_note_norm, with_kwargs=True)
            for module in model.modules() if isinstance(module, NORMS)
        ]

    def before_train_iter(self, runner: Runner, *args: Any,
                          **kwargs: Any) -> None:
        """Begin the draws of this iteration."""
        numbers = np.random.SeedSequence((self.seed, runner.iter, get_rank()))
        self.pruner.begin(int(numbers.generate_state(1)[0]))

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Predict the next tau of each layer, and log."""
        sums = self.pruner.take()
        numbers = sums.new_tensor([layer.numbers for layer in self.layers])
        sums = torch.cat([sums, numbers], dim=1)
        all_reduce(sums)
        found = sums.tolist()
        for layer, of_layer in zip(self.layers, found):
            layer.finish_iteration(*of_layer)
        _, *self.counts, _ = map(sum, zip(*found))
        hooks = _hooks(runner)
        if self is hooks[-1]:  # what is logged is that of all
            zeros, count = map(sum, zip(*(hook.counts for hook in hooks)))
            runner.message_hub.update_scalar('train/gradient_pruning/zeros',
                                             _share(zeros, count))

    def after_train(self, runner: Runner) -> None:
        """Take the hooks out of the model, and log what each layer did."""
        for handle in self.handles:
            handle.remove()
        lines = '\n'.join(layer.summary() for layer in self.layers)
        print_log(
            'gradient_pruning: the share of zeros in the gradient at each '
            "convolution's output, where the gradient was pruned, and by how "
            f'much the predicted tau was off, since this run began:\n{lines}'
            f'\n{_saved(self.layers)}', logger='current')

    def _chosen(self, runner: Runner) -> list[str]:
        model = unwrapped(runner.model)
        names = [name for name, module in model.named_modules()
                 if isinstance(module, _ConvNd)]
        if not names:
            raise ValueError(
                'GradientPruningHook needs convolutions, because it prunes '
                f'their gradients, and {type(model).__name__} has none: train '
                'without it.')
        for pattern in self.include + self.exclude:
            if not any(map(pattern.search, names)):
                raise ValueError(
                    f'The pattern {pattern.pattern!r} finds no convolution '
                    f'of {type(model).__name__}: mend it, or leave it out. '
                    f'Its convolutions are {", ".join(names)}.')
        chosen = [
            name for name in names
            if (not self.include or any(p.search(name) for p in self.include))
            and not any(p.search(name) for p in self.exclude)
        ]
        if not chosen:
            raise ValueError('exclude leaves no convolution to be pruned: '
                             'leave out a pattern, or this hook.')
        taken = {layer.name for hook in _hooks(runner) if hook is not self
                 for layer in hook.layers}
        twice = [name for name in chosen if name in taken]
        if twice:
            raise ValueError(
                f'Two GradientPruningHooks prune {", ".join(twice)}, but a '
                'layer has one tau: give each hook include or exclude, so '
                'that no layer is in both.')
        return chosen


class _Layer:
    """A convolution: its tau, its part in the backward pass, its numbers."""

    def __init__(self, name: str, index: int, factor: float, pruner: Pruner,
                 means: deque[float]):
        self.name = name
        self.index = index
        self.factor = factor
        self.pruner = pruner
        self.means = means
        self.normalised = False
        self.cost = 0.  # multiply-adds for a number of the output's gradient
        self.numbers = [0, 0]  # at its output, and of what was pruned
        self.zeros = self.count = 0.
        self.errors: list[float] = []

    @property
    def tau(self) -> float:
        """As predicted; 0 before the first iteration."""
        return self.factor * fmean(self.means) if self.means else 0.

    def attach(self, module: nn.Module) -> list[Any]:
        return [module.register_forward_pre_hook(self._before_forward,
                                                 with_kwargs=True),
                module.register_forward_hook(self._after_forward)]

    def finish_iteration(self, size: float, zeros: float, count: float,
                         pruned: float) -> None:
        """Take the sums of |g| and their number, over all processes."""
        self.numbers = [0, 0]
        self.zeros += zeros
        self.count += count
        mean = _share(size, pruned)
        # A gradient that overflowed, in mixed precision, predicts nothing.
        if pruned and math.isfinite(mean):
            if self.means and mean:
                self.errors.append(abs(fmean(self.means) / mean - 1))
            self.means.append(mean)

    def summary(self) -> str:
        if not self.count:
            return f'{self.name}: had no gradient'
        off = f'{fmean(self.errors):.1%}' if self.errors else '-'
        return (f'{self.name}: zeros {self.zeros / self.count:.3f}, pruned '
                f'at its {"output" if self.normalised else "input"}, tau '
                f'{self.tau:.3g}, off by {off}')

    def _before_forward(self, module: nn.Module, args: tuple,
                        kwargs: dict) -> tuple[tuple, dict] | None:
        key, x = _input(args, kwargs)
        if not torch.is_grad_enabled():
            return None
        self.cost = _cost(module) * (
            module.weight.requires_grad + x.requires_grad)
        if not x.requires_grad:
            return None
        # Its own name for the input, whose gradient is this layer's alone.
        x = x.view_as(x)
        x.register_hook(self._prune_input)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, key: x})

    def _after_forward(self, module: nn.Module, args: tuple,
                       output: Tensor) -> None:
        if output.requires_grad:
            output.grad_fn.metadata[_Layer] = self
            output.register_hook(self._prune_output)

    def _prune_input(self, grad: Tensor) -> Tensor:
        return grad if self.normalised else self._prune(grad, zeros=False)

    def _prune_output(self, grad: Tensor) -> Tensor:
        self.numbers[0] += grad.numel()
        if self.normalised:
            return self._prune(grad, zeros=True)
        self.pruner.count(grad, self.index)
        return grad

    def _prune(self, grad: Tensor, zeros: bool) -> Tensor:
        self.numbers[1] += grad.numel()
        return self.pruner.prune(grad, self.tau, self.index, zeros)


def _cost(module: _ConvNd) -> float:
    """Multiply-adds for each number at the output, in one product."""
    cost = module.weight.numel() / module.out_channels
    return cost / math.prod(module.stride) if module.transposed else cost


def _saved(layers: list[_Layer]) -> str:
    whole = sum(layer.cost * layer.count for layer in layers)
    saved = _share(sum(layer.cost * layer.zeros for layer in layers), whole)
    return (f'{saved:.1%} of the multiply-adds of these backward passes have '
            f'a zero: hardware that skips them needs {1 / (1 - saved):.2f} '
            'times fewer' if saved < 1 else 'no gradient was left')


def _pruner(layers: int, device: torch.device) -> Pruner:
    if device.type == 'cuda' and find_spec('triton'):
        import triton

        # By that of torch 2.6, 3.2, the kernel is wrong; by 3.6 it was tried.
        if digit_version(triton.__version__) >= digit_version('3.6'):
            from mmpsw.methods.gradient_pruning.kernel import KernelPruner
            return KernelPruner(layers, device)
    return Pruner(layers, device)


def _hooks(runner: Runner) -> list[GradientPruningHook]:
    return [hook for hook in runner.hooks
            if isinstance(hook, GradientPruningHook)]


def _input(args: tuple, kwargs: dict) -> tuple[str | None, Tensor]:
    """What a layer is called with, and its name where it was given by one."""
    if args:
        return None, args[0]
    return next((key, value) for key, value in kwargs.items()
                if isinstance(value, Tensor))


def _note_norm(module: nn.Module, args: tuple, kwargs: dict) -> None:
    """Tell a convolution that a normalisation layer takes its output."""
    node = _input(args, kwargs)[1].grad_fn
    layer = node and node.metadata.get(_Layer)
    if layer:
        layer.normalised = True


def _patterns(key: str, patterns: str | Sequence[str]) -> list[re.Pattern]:
    if isinstance(patterns, str):
        patterns = [patterns]
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise ValueError(f'{key}={patterns!r} is no regular expression: '
                         f'{error}.') from error


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.

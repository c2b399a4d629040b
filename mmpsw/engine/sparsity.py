"""Weights that are held at zero by masks, under any optimizer."""
import math
from typing import Any

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.prune import L1Unstructured
from torch.optim import Optimizer

from mmpsw.methods.sparsity import (
    drop,
    grow,
    hoyer,
    next_ratio,
    random_mask,
)
from mmpsw.models import saved_tensors, unwrapped
from mmpsw.registry import HOOKS

from .averaging.follower import happened
from .orthogonal import OrthogonalHook

__all__ = ['MagnitudePruningHook', 'SparsityHook']


class _MaskHook(Hook):
    """Holds masked weights, their gradients and their momentum at zero.

    The masks are over the trainable weights of all convolutions and linear
    layers, but for parametrised ones, which the log names. They are saved
    under ``sparsity``, beside the ``state_dict``, which holds the masked
    weights under the stock config's names. An average is masked too where it
    is validated, tested and saved. The share of zeros is logged as
    ``sparsity/zeros``, and each layer's at the end.

    Raises:
        ValueError: A setting is out of its range, the model has no such
            layer, there are several optimizers or another such hook, the
            layers' weights are turned by an OrthogonalHook, or a run is
            resumed that had no masks of this kind.
    """

    # After what may write weights: the averages' hooks.
    priority = 'BELOW_NORMAL'

    def __init__(self, target: float):
        _check_share('target', target)
        self.target = target
        self.saved: dict[str, Any] | None = None
        self.weights: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}
        self.updates = 0
        self.progress = 0.
        self.zeros = 0.  # counting them waits for a GPU

    def first_masks(self) -> dict[str, Tensor]:
        """The masks of a run that begins."""
        raise NotImplementedError

    def due(self) -> bool:
        """Whether the masks change with this update."""
        raise NotImplementedError

    def change_masks(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """The new masks; gradients are those of all weights, masked too."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return dict(masks={name: mask.cpu()
                           for name, mask in self.masks.items()},
                    updates=self.updates)

    def load(self, state: dict[str, Any]) -> None:
        """Go on from it."""
        self.masks = {name: state['masks'][name].to(weight.device)
                      for name, weight in self.weights.items()}
        self.updates = state['updates']

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict) -> None:
        """Add the masks, and mask an average that is saved."""
        checkpoint['sparsity'] = self.state()
        masks = {id(self.weights[name]): mask
                 for name, mask in self.masks.items()}
        saved = checkpoint['state_dict']
        # A shared layer's weight has several names.
        for name, weight in saved_tensors(runner.model).items():
            if id(weight) in masks and name in saved:
                mask = masks[id(weight)].to(saved[name].device)
                saved[name] = saved[name].masked_fill(~mask, 0)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the masks until it is known whether the run is resumed."""
        self.saved = checkpoint.get('sparsity')

    def before_train(self, runner: Runner) -> None:
        """Find the weights, and mask them."""
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise ValueError(
                f'{type(self).__name__} needs one optimizer, but the config '
                'has several: train without it.')
        if len(mask_hooks(runner)) > 1:
            raise ValueError(
                'Two hooks cannot mask the same weights: leave one out of '
                "--with (lp_sgd has one, lp_sgd_dense has none), "
                'or of custom_hooks.')
        if any(isinstance(hook, OrthogonalHook) for hook in runner.hooks):
            raise ValueError(
                f'{type(self).__name__} cannot be used with OrthogonalHook, '
                'because what only turns cannot have entries held at zero: '
                'train with one of them.')
        if hasattr(runner.optim_wrapper.optimizer, 'consolidate_state_dict'):
            raise ValueError(
                f'{type(self).__name__} cannot be used with a '
                'ZeroRedundancyOptimizer, because the momentum of what is '
                'masked lies inside of it: use the optimizer that it wraps.')
        self.weights = _maskable(unwrapped(runner.model))
        if not runner.iter:
            self.masks = self.first_masks()
        elif self.saved and self.saved.keys() == self.state().keys():
            self.load(self.saved)
            self.saved = None
        else:
            raise ValueError(
                'The checkpoint cannot be resumed from with '
                f'{type(self).__name__}, because it has no masks of this '
                'kind: resume with the settings with which the run was begun, '
                'or start a new one from its weights with load_from.')
        optimizer = runner.optim_wrapper.optimizer
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        self._set_masks(self.masks)
        self.mask_weights()

    def before_train_iter(self, runner: Runner, *args: Any,
                          **kwargs: Any) -> None:
        """Learn how much of the run is over."""
        self.progress = runner.iter / runner.max_iters

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Mask what an average has written, and the average, and log."""
        self.mask_weights()
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                self.mask_average(hook.ema_model.module)
        runner.message_hub.update_scalar('train/sparsity/zeros', self.zeros)

    def before_val_epoch(self, runner: Runner) -> None:
        """Mask an average that is shown."""
        self.mask_weights()

    def before_test_epoch(self, runner: Runner) -> None:
        """The same."""
        self.mask_weights()

    def after_train(self, runner: Runner) -> None:
        """Say how sparse each layer is."""
        lines = ['sparsity: zeros and Hoyer\'s sparsity of each layer']
        for name, weight in self.weights.items():
            zeros = (weight == 0).double().mean().item()
            lines.append(f'{name}: {zeros:.3f}, {hoyer(weight):.3f}')
        print_log('\n'.join(lines), logger='current')

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        """Only what is not masked has a gradient; RigL reads the others."""
        grads = {name: weight.grad for name, weight in self.weights.items()
                 if weight.grad is not None}
        self._gradients = None
        if self.due():
            self._gradients = {n: grad.clone() for n, grad in grads.items()}
        if grads:
            torch._foreach_mul_(list(grads.values()),
                                [self.factors[name] for name in grads])

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if not happened(optimizer):
            return
        if self._gradients is not None:
            before = self.masks
            self._set_masks(self.change_masks(self._gradients))
            for name, weight in self.weights.items():
                state = optimizer.state.get(weight, {})
                for key in {'momentum_buffer', 'exp_avg'} & state.keys():
                    state[key].mul_(before[name] & self.masks[name])
        self.updates += 1
        self.mask_weights()

    def _set_masks(self, masks: dict[str, Tensor]) -> None:
        self.masks = masks
        # As numbers, so that one multiplication masks all weights.
        self.factors = {name: mask.to(self.weights[name].dtype)
                        for name, mask in masks.items()}
        self.zeros = share_of_zeros(masks)

    def mask_weights(self) -> None:
        """Set to zero what is masked of the weights in the model."""
        # Through .data, which LpSGD does not take for somebody's writing: the
        # v of what is masked stays, and counts in the filter's norm.
        if self.weights:  # a run that only tests has none
            torch._foreach_mul_(
                [weight.data for weight in self.weights.values()],
                list(self.factors.values()))

    def mask_average(self, model: nn.Module) -> None:
        """The same in a model beside it."""
        for name, mask in self.masks.items():
            weight = model.get_parameter(name).data
            weight.masked_fill_(~mask.to(weight.device), 0)


def mask_hooks(runner: Runner) -> list[_MaskHook]:
    """Those of a run."""
    return [hook for hook in runner.hooks if isinstance(hook, _MaskHook)]


@HOOKS.register_module()
class SparsityHook(_MaskHook):
    """Semi-pruning, until a target's share of the weights is zero.

    Li et al. 2021 (arXiv 2103.16013), made for LpSGD. A random mask from the
    first step on; then, every ``interval`` updates: of each filter those are
    dropped that are small beside the mean of its others, and of each layer
    those grow that have the largest gradients. How many grow for one that is
    dropped follows the present share of zeros, starting at 0.95.

    LpSGD keeps v where a weight is masked, so that what grows has its former
    value at the next step; under another optimizer it starts at zero.
    The gradients are those of the same update, before it; the official code
    computes others after it, by one more pass.

    Args:
        target (float): The share of zeros to be reached, in (0, 1), over all
            masked layers together.
        initial (float): That of the random mask. Defaults to 0.2.
        begin (float): The share of the run after which the masks begin to
            change. Defaults to 0.2.
        end (float): The share of the run after which they stay. Defaults to
            0.8.
        interval (int): Optimizer updates between changes. Defaults to 40.
        fraction (float): Dropped is what is below this times the mean,
            annealed to zero by a cosine. Defaults to 0.2.
        seed (int): Of the random mask, the same for all processes. Defaults
            to 0.
    """

    def __init__(self, target: float, initial: float = 0.2,
                 begin: float = 0.2, end: float = 0.8, interval: int = 40,
                 fraction: float = 0.2, seed: int = 0):
        super().__init__(target)
        _check_share('initial', initial)
        if not 0 <= begin < end <= 1:
            raise ValueError(f'begin={begin!r}, end={end!r} is not possible: '
                             'use shares of the run with 0 <= begin < end '
                             '<= 1.')
        if interval < 1:
            raise ValueError(f'interval={interval!r} is not possible, because '
                             'it counts updates: use an integer >= 1.')
        self.initial = initial
        self.begin = begin
        self.end = end
        self.interval = interval
        self.fraction = fraction
        self.seed = seed
        self.ratio = 0.95

    def first_masks(self) -> dict[str, Tensor]:
        """Drawn at random."""
        generator = torch.Generator().manual_seed(self.seed)
        return {name: random_mask(weight, self.initial, generator)
                for name, weight in self.weights.items()}

    def due(self) -> bool:
        """Every so many updates, inside of begin and end."""
        return (self.begin <= self.progress < self.end
                and self.updates % self.interval == 0)

    def change_masks(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drop, and grow."""
        place = (self.progress - self.begin) / (self.end - self.begin)
        fraction = self.fraction * (1 + math.cos(math.pi * place)) / 2
        masks = dict(self.masks)
        for name, gradient in gradients.items():
            left = drop(self.weights[name], masks[name], fraction)
            dropped = int(masks[name].sum() - left.sum())
            masks[name] = grow(gradient, left, int(dropped * self.ratio))
        self.ratio = next_ratio(
            share_of_zeros(masks), self.target, fraction)
        return masks

    def state(self) -> dict[str, Any]:
        """With the ratio."""
        return dict(super().state(), ratio=self.ratio)

    def load(self, state: dict[str, Any]) -> None:
        """With the ratio."""
        super().load(state)
        self.ratio = state['ratio']


@HOOKS.register_module()
class MagnitudePruningHook(_MaskHook):
    """Prunes the smallest weights of all layers, once, and trains on.

    The peer of :class:`SparsityHook`, with any optimizer: torch.nn.utils.prune
    chooses (by L1), and the rest of the run is the fine-tuning.

    Args:
        target (float): The share of zeros, in (0, 1).
        begin (float): The share of the run after which it prunes. Defaults to
            0.5.
        per_layer (bool): Whether each layer has that share, as by torch's
            ``l1_unstructured``, instead of all together, as by its
            ``global_unstructured``. Together, a layer whose weights are all
            small, such as the head of a detector, may become all zero.
            Defaults to False.
    """

    def __init__(self, target: float, begin: float = 0.5,
                 per_layer: bool = False):
        super().__init__(target)
        _check_share('begin', begin)
        self.begin = begin
        self.per_layer = per_layer

    def first_masks(self) -> dict[str, Tensor]:
        """Nothing is masked."""
        return {name: torch.ones_like(weight, dtype=torch.bool)
                for name, weight in self.weights.items()}

    def due(self) -> bool:
        """Once."""
        return self.progress >= self.begin and not self.zeros

    def change_masks(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep the largest."""
        weights = self.weights
        if self.per_layer:
            return {name: self._largest(w) for name, w in weights.items()}
        mask = self._largest(torch.cat([w.flatten()
                                        for w in weights.values()]))
        parts = mask.split([w.numel() for w in weights.values()])
        return {name: part.view(w.shape)
                for part, (name, w) in zip(parts, weights.items())}

    def _largest(self, weight: Tensor) -> Tensor:
        return L1Unstructured(self.target).compute_mask(
            weight, torch.ones_like(weight)).bool()


def share_of_zeros(masks: dict[str, Tensor]) -> float:
    """Over all layers together."""
    alive = sum(int(mask.sum()) for mask in masks.values())
    return 1 - alive / sum(mask.numel() for mask in masks.values())


def _maskable(model: nn.Module) -> dict[str, Tensor]:
    layers = {name: module for name, module in model.named_modules()
              if isinstance(module, (_ConvNd, nn.Linear))
              and module.weight.requires_grad}
    # A parametrised weight is computed anew from others.
    weights = {f'{name}.weight': module.weight
               for name, module in layers.items()
               if 'weight' in module._parameters}
    left = [name for name in layers if f'{name}.weight' not in weights]
    if left:
        print_log('sparsity: parametrised, and so not masked: '
                  + ', '.join(left), logger='current')
    if not weights:
        raise ValueError(
            'There is nothing to mask, because the model has no trainable '
            'convolution or linear layer that is not parametrised: train '
            'without this hook.')
    return weights


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f'{name}={value!r} is not possible, because it is a '
                         'share: use a number in (0, 1).')

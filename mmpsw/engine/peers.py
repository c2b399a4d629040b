"""What a user would pick instead: the peers that PSW is compared with.

mmengine has the exponential moving average (EMAHook). Four that it lacks are
a small change of its EMAHook each, so that they validate, save and resume as
that does, and count iterations as that does. The fifth, schedule-free
training, is an optimizer of a library, with a hook.
"""
import math
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from mmengine.runner.checkpoint import weights_to_cpu
from torch import nn
from torch.optim import Optimizer

from mmpsw.methods.averaging import recalibrate, running_statistics
from mmpsw.models import losses, unwrapped
from mmpsw.registry import HOOKS, MODELS, OPTIMIZERS
from mmpsw.runtime.epochs import epoch_length
from mmpsw.runtime.resume import LIVE, restore_live_weights

from .averaging.hook import random_batches
from .swapping import check_one_average, swapping_hooks

__all__ = [
    'EpochAverageHook', 'LatestWeightAverage', 'LookaheadHook',
    'ScheduleFreeHook', 'SwitchEMAHook'
]


@HOOKS.register_module()
class EpochAverageHook(EMAHook):
    """Averages the weights at the ends of epochs: SWA, and LAWA.

    The average is validated and saved, and never written back. Before it
    begins, the last epoch end's weights are.

    - SWA (Izmailov et al. 2018, arXiv 1803.05407):
      ``ema_type='StochasticWeightAverage'``, mmengine's own, and ``begin`` at
      three quarters of the training. mmengine's EMAHook alone would sample
      one iteration after each epoch, and take the weights of its first
      iteration for the first sample.
    - LAWA (Kaddour 2022, arXiv 2209.14981):
      ``ema_type='mmpsw.LatestWeightAverage'``.

    Args:
        begin (float): The share of the training in [0, 1) after which epoch
            ends count. Defaults to 0.
        **kwargs: Those of EMAHook: ``ema_type``, ``update_buffers``, ...

    Raises:
        ValueError: ``begin`` is out of its range, or the loop has no epochs.
    """

    def __init__(self, begin: float = 0., **kwargs: Any):
        if not 0 <= begin < 1:
            raise ValueError(
                f'begin={begin!r} is not possible, because it is a share of '
                'the training: use a number in [0, 1).')
        super().__init__(**kwargs)
        self.begin = begin
        self.saved_first: int | None = None

    def before_train(self, runner: Runner) -> None:
        """Turn shares and epochs into iterations."""
        check_one_average(swapping_hooks(runner.hooks))
        self.epoch_length = _epoch_length(runner, self)
        self.begin_iter = round(self.begin * runner.max_iters)
        # The first epoch, from 1, whose end counts.
        self.first = max(1, math.ceil(self.begin_iter / self.epoch_length))
        super().before_train(runner)
        _begin(self, runner)
        if runner.iter and self.saved_first is not None:
            self.begin_elsewhere(runner, self.saved_first)

    def begin_elsewhere(self, runner: Runner, first: int) -> None:
        """Go on where an average began with another epoch than it does here.

        Args:
            runner (Runner): A run that is resumed with another length.
            first (int): The first epoch, from 1, that was to be averaged.

        Raises:
            ValueError: Epoch ends were averaged that do not count here, or
                were not that do.
        """
        epochs = runner.iter // self.epoch_length
        if first == self.first or epochs < min(first, self.first):
            return
        if epochs >= self.first:
            raise ValueError(
                'The checkpoint cannot be resumed from with EpochAverageHook, '
                f'because its average begins with epoch {first}, and in a run '
                f'of this length with epoch {self.first}: resume with the '
                'length that was saved, or begin anew.')
        self.ema_model.steps.zero_()
        self.ema_model.module.load_state_dict(self.src_model.state_dict())

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict) -> None:
        """Also save where the average begins."""
        super().before_save_checkpoint(runner, checkpoint)
        checkpoint['epoch_average_begin'] = self.first

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember it."""
        super().after_load_checkpoint(runner, checkpoint)
        self.saved_first = checkpoint.get('epoch_average_begin')

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Sample, where an epoch ends."""
        if self.every_n_train_iters(runner, self.epoch_length):
            super().after_train_iter(runner, *args, **kwargs)


@HOOKS.register_module()
class SwitchEMAHook(EMAHook):
    """An EMA that replaces the weights at the end of each epoch.

    Switch EMA (Li et al. 2024, arXiv 2402.09240): the moving average goes on
    as it is, and training goes on from it.

    Args:
        **kwargs: Those of EMAHook: ``momentum``, ``update_buffers``, ...

    Raises:
        ValueError: The loop has no epochs.
    """

    def before_train(self, runner: Runner) -> None:
        """Learn how long an epoch is."""
        check_one_average(swapping_hooks(runner.hooks))
        self.interval = _epoch_length(runner, self)
        super().before_train(runner)

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Update the average, and switch where an epoch ends."""
        super().after_train_iter(runner, *args, **kwargs)
        if self.every_n_train_iters(runner, self.interval):
            _switch(self)


@HOOKS.register_module()
class LookaheadHook(EMAHook):
    """Slow weights that go a part of the way to the fast ones, and back.

    Lookahead (Zhang et al. 2019, arXiv 1907.08610), algorithm 1: the slow
    weights begin where the run does; every k iterations ``slow <- slow +
    alpha (fast - slow)`` and ``fast <- slow``. The slow weights are validated
    and saved. Buffers are those of the fast weights.

    Args:
        k (int): Iterations between synchronisations. Defaults to 5.
        alpha (float): The step of the slow weights, in (0, 1). Defaults to
            0.5.
    """

    def __init__(self, k: int = 5, alpha: float = 0.5):
        super().__init__(momentum=alpha, interval=k)
        self.k = k

    def before_train(self, runner: Runner) -> None:
        """The weights at the beginning are the first slow ones."""
        check_one_average(swapping_hooks(runner.hooks))
        super().before_train(runner)
        _begin(self, runner)
        # mmengine's average takes those after its first step instead.
        self.ema_model.steps.clamp_(min=1)

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Synchronise every k iterations."""
        super().after_train_iter(runner, *args, **kwargs)
        if self.every_n_train_iters(runner, self.k):
            _switch(self)


@MODELS.register_module()
class LatestWeightAverage(nn.Module):
    """The mean of the last k weights: an ``ema_type`` for EMAHook.

    Latest Weight Averaging (Kaddour 2022, arXiv 2209.14981), with a copy of
    the model for each of the k, all of them saved in the checkpoint.
    Floating-point buffers are averaged too, integer ones are the newest.

    Args:
        model (nn.Module): The model to be averaged.
        last (int): k. Defaults to 5.

    Raises:
        ValueError: ``last`` < 1.
    """

    # EMAHook then swaps the buffers too.
    update_buffers = True

    def __init__(self, model: nn.Module, last: int = 5):
        super().__init__()
        if last < 1:
            raise ValueError(f'last={last!r} is not possible, because it '
                             'counts weights: use an integer >= 1.')
        self.module = deepcopy(model).requires_grad_(False)
        self.latest = nn.ModuleList(
            deepcopy(self.module) for _ in range(last))
        self.register_buffer('steps', torch.tensor(0))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's weights as the newest of the k."""
        oldest = int(self.steps) % len(self.latest)
        newest = model.state_dict()
        self.latest[oldest].load_state_dict(newest)
        self.steps += 1
        states = [m.state_dict() for m in self.latest][:int(self.steps)]
        for name, mean in self.module.state_dict().items():
            if mean.is_floating_point():
                mean.copy_(torch.stack([s[name] for s in states]).mean(0))
            else:
                mean.copy_(newest[name])


@HOOKS.register_module()
class ScheduleFreeHook(Hook):
    """Validates and saves the average that a schedule-free optimizer keeps.

    Schedule-Free (Defazio et al. 2024, arXiv 2405.15682), by its authors'
    library (``pip install schedulefree``): gradients are taken at y, between
    the average x and the plain weights z; x is what is evaluated. Its batch
    norm is recalibrated then, as they advise.

    Args:
        recalibrate_batches (int): Training batches for that, each time.
            Defaults to 50.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self, recalibrate_batches: int = 50):
        self.recalibrate_batches = recalibrate_batches
        self.live: dict[str, torch.Tensor] = {}
        self.loaded: dict[str, torch.Tensor] | None = None

    def before_train(self, runner: Runner) -> None:
        """Train at y.

        Raises:
            ValueError: There are several processes. The first alone saves,
                and would recalibrate without the others. Or something else
                shows an average too, or y is not in the checkpoint that is
                resumed from.
        """
        check_one_average(swapping_hooks(runner.hooks))
        if get_world_size() > 1:
            raise ValueError(
                'ScheduleFreeHook needs a single process, because it '
                'recalibrates batch norm for each checkpoint, which only one '
                'of several saves: train on one GPU, or with --with psw.')
        if runner.iter and self.loaded is not None:
            if not self.loaded:
                raise ValueError(
                    'The checkpoint cannot be resumed from with '
                    'ScheduleFreeHook, because it was saved without it: start '
                    'a new run from its weights with load_from.')
            restore_live_weights(runner.model, self.loaded)
        self.loaded = None
        runner.optim_wrapper.optimizer.train()

    def before_val_epoch(self, runner: Runner) -> None:
        """Show x. A run that only validates has loaded it."""
        if isinstance(runner.optim_wrapper, dict):
            return
        model = unwrapped(runner.model)
        self.live = deepcopy(model.state_dict())
        runner.optim_wrapper.optimizer.eval()
        # The best checkpoint is saved inside of a validation.
        was = model.training
        model.train()
        batches = random_batches(runner.train_loop.dataloader,
                                 self.recalibrate_batches, seed=0)
        recalibrate(model, partial(losses, model), batches)
        model.train(was)

    def after_val_epoch(self, runner: Runner,
                        metrics: dict[str, float] | None = None) -> None:
        """Put y back, bit by bit."""
        if isinstance(runner.optim_wrapper, dict):
            return
        unwrapped(runner.model).load_state_dict(self.live)
        for group in runner.optim_wrapper.optimizer.param_groups:
            group['train_mode'] = True

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict) -> None:
        """x is what a user deploys; y is for a resume."""
        checkpoint[LIVE] = checkpoint['state_dict']
        self.before_val_epoch(runner)
        checkpoint['state_dict'] = weights_to_cpu(deepcopy(
            unwrapped(runner.model).state_dict()))
        self.after_val_epoch(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep y until it is known whether this is a resume."""
        self.loaded = checkpoint.get(LIVE, {})


@OPTIMIZERS.register_module()
def SGDScheduleFree(params: Any, **settings: Any) -> Optimizer:  # noqa: N802
    """The library's optimizer of this name; it needs ScheduleFreeHook."""
    from schedulefree import SGDScheduleFree
    return SGDScheduleFree(params, **settings)


@OPTIMIZERS.register_module()
def AdamWScheduleFree(params: Any, **settings: Any) -> Optimizer:  # noqa: N802
    """The library's optimizer of this name; it needs ScheduleFreeHook."""
    from schedulefree import AdamWScheduleFree
    return AdamWScheduleFree(params, **settings)


def _begin(hook: EMAHook, runner: Runner) -> None:
    """Take the first weights: mmengine's copy is older than init_weights."""
    if not runner.iter:
        hook.ema_model.module.load_state_dict(hook.src_model.state_dict())


@torch.no_grad()
def _switch(hook: EMAHook) -> None:
    """Train on from the average of the weights and running statistics.

    All other buffers keep their live values: the mean of a memory is none.
    """
    averaged = hook.ema_model.module.state_dict()
    for name, param in hook.src_model.named_parameters():
        param.copy_(averaged[name])
    for name, (module, own) in running_statistics(hook.src_model).items():
        module._buffers[own].copy_(averaged[name])


def _epoch_length(runner: Runner, hook: EMAHook) -> int:
    length = epoch_length(runner.train_loop)
    if length is None:
        raise ValueError(
            f'{type(hook).__name__} needs epochs, and this data loader has no '
            'length: use one that has, or train without this hook.')
    return length

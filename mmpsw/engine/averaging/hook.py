"""The Hook: what needs the runner."""
import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from mmpsw.methods.averaging import PeriodicResampler, recalibrate
from mmpsw.methods.averaging.numbers import check_integer
from mmpsw.models import losses, saved_tensors, unwrapped
from mmpsw.registry import HOOKS
from mmpsw.runtime.epochs import epoch_length
from mmpsw.runtime.ranks import check_same_weights, mean_over_ranks
from mmpsw.runtime.resume import fit_to_epoch_length, skip_trained_batches
from mmpsw.runtime.saving import save_safely

from .buffers import owned_buffers
from .optim_wrapper import PSWOptimWrapperMixin
from .settings import HOW_TO_ENABLE
from .strategies import check_runner

__all__ = ['PSWHook', 'random_batches']


@HOOKS.register_module()
class PSWHook(Hook):
    """Does for the PSWOptimWrapper what needs the runner.

    - Before a resume, it hands over the length of an epoch and the buffers.
    - It refuses what is not supported, before the training starts.
    - With ``buffers='recalibrate'`` it recomputes batch-norm statistics after
      each resampling, by forward passes over training batches.
    - With ``write_back=False`` or ``evaluate='average'`` it puts the average
      into the model to validate and test, and into the checkpoint's
      ``state_dict``.
    - With several processes, the buffers' means are averaged over them.
    - A run that is resumed inside an epoch goes on inside it, and one with
      another number of processes goes on at the same place in its epoch.
    - Checkpoints are saved by a :class:`SafeSavingHook`, which it adds.

    A stock EMAHook (priority NORMAL) sees the weights that were written back.

    Args:
        recalibrate_batches (int): Training batches for each recalibration.
            Defaults to 100, or one epoch if that is less.
        check_ranks (bool): Whether to compare the weights of all processes
            after each resampling, by one small all-reduce. Where they differ,
            all of them raise a RuntimeError that names the first such
            parameter. Defaults to False.

    Raises:
        ValueError: ``recalibrate_batches`` is no integer >= 1, or
            ``check_ranks`` no bool.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self,
                 recalibrate_batches: int = 100,
                 check_ranks: bool = False):
        check_integer('recalibrate_batches', recalibrate_batches, 1)
        if not isinstance(check_ranks, bool):
            raise ValueError(f'check_ranks={check_ranks!r} is not possible: '
                             'use True or False.')
        self.recalibrate_batches = recalibrate_batches
        self.check_ranks = check_ranks
        self.wrappers: list[PSWOptimWrapperMixin] = []

    def before_run(self, runner: Runner) -> None:
        """Attach the wrappers, when the run is a training.

        Raises:
            ValueError: Something is missing or not supported.
        """
        check_runner(runner)
        if self.wrappers or not _trains(runner):
            return
        wrappers = _psw_wrappers(runner.optim_wrapper)
        model = unwrapped(runner.model)
        owned = owned_buffers(model, _all_wrappers(runner.optim_wrapper))
        for name, wrapper in wrappers.items():
            wrapper.attach(
                epoch_length=epoch_length(runner.train_loop),
                buffers=owned[name],
                name=name,
                names={p: n
                       for n, p in model.named_parameters()},
                reduce_buffers=mean_over_ranks)
        self.wrappers = list(wrappers.values())
        self._check_other_hooks(runner)
        save_safely(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Before a resume, see where in this run's epochs it goes on.

        Raises:
            ValueError: The runner is not supported.
        """
        check_runner(runner)
        if getattr(runner, '_resume', False):
            fit_to_epoch_length(checkpoint, runner.train_loop)

    def before_train(self, runner: Runner) -> None:
        """Go on inside the epoch in which the run was interrupted.

        With the control arm, also see to it that the live weights are in the
        model after a validation that raises: hooks are not told of that.
        """
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            skip_trained_batches(runner.train_loop)
        for wrapper in self.wrappers:
            _say_what_is_validated(runner, wrapper)
        if runner.val_loop is not None and any(
                wrapper.psw.swaps for wrapper in self.wrappers):
            runner.val_loop.run = self._then_show_live(runner.val_loop.run)

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Recalibrate, and compare the processes, after a resampling."""
        for wrapper in self.wrappers:
            if runner.iter + 1 == runner.max_iters:
                wrapper.finish()
            resampler = wrapper.resampler
            done, resampler.newest = resampler.newest, None
            if done is None:
                continue
            if done.applied and wrapper.psw.buffers == 'recalibrate':
                control = not wrapper.psw.write_back
                with resampler.averaged() if control else nullcontext():
                    self._recalibrate(runner, resampler.resamplings)
                    resampler.take_buffers()
            if self.check_ranks:
                check_same_weights(
                    _named_weights(resampler), runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        """Validate the average."""
        self._show_average()

    def after_val_epoch(self,
                        runner: Runner,
                        metrics: dict[str, float] | None = None) -> None:
        """Put the live weights back."""
        self._show_live()

    def before_test_epoch(self, runner: Runner) -> None:
        """Test the average."""
        self._show_average()

    def after_test_epoch(self,
                         runner: Runner,
                         metrics: dict[str, float] | None = None) -> None:
        """Put the live weights back."""
        self._show_live()

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict) -> None:
        """Save the average as ``state_dict``: it is what a user deploys.

        The live weights are in the optimizer's ``psw`` state.
        """
        for wrapper in self.wrappers:
            average = wrapper.resampler.average
            if average is None:
                continue
            saved = {
                id(live): mean.to('cpu', live.dtype, copy=True)
                for live, mean in zip(wrapper.resampler.tensors, average)
            }
            for name, tensor in saved_tensors(runner.model).items():
                if id(tensor) in saved and name in checkpoint['state_dict']:
                    checkpoint['state_dict'][name] = saved[id(tensor)]

    def _then_show_live(self, run: Callable) -> Callable:

        @functools.wraps(run)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return run(*args, **kwargs)
            finally:
                self._show_live()

        return guarded

    def _show_average(self) -> None:
        for wrapper in self.wrappers:
            wrapper.buffers.put_back()
            wrapper.resampler.show_average()

    def _show_live(self) -> None:
        for wrapper in self.wrappers:
            wrapper.resampler.show_live()

    def _recalibrate(self, runner: Runner, seed: int) -> None:
        loader = runner.train_loop.dataloader
        batches = random_batches(loader, self.recalibrate_batches, seed)
        model = unwrapped(runner.model)
        with self._forward_context(runner, model):
            recalibrate(model, functools.partial(losses, model), batches)
        mean_over_ranks(
            [b for b in model.buffers() if b.is_floating_point()])

    def _forward_context(self, runner: Runner, model: nn.Module) -> Any:
        """Mixed precision where the training has it."""
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            return nullcontext()
        return runner.optim_wrapper.optim_context(model)

    def _check_other_hooks(self, runner: Runner) -> None:
        swaps = [w for w in self.wrappers if w.psw.swaps]
        if swaps and any(isinstance(h, EMAHook) for h in runner.hooks):
            raise ValueError(
                "psw.write_back=False and psw.evaluate='average' cannot be "
                'used with an EMAHook, because both put their average into '
                'the model to validate it: remove the EMAHook from '
                'custom_hooks, or these keys from psw.')


def _say_what_is_validated(runner: Runner,
                           wrapper: PSWOptimWrapperMixin) -> None:
    """Once, where validations come inside of periods."""
    if runner.val_loop is None or wrapper.psw.evaluate == 'average':
        return
    loop, schedule = runner.train_loop, wrapper.resampler.schedule
    every = loop.val_interval
    if isinstance(loop, EpochBasedTrainLoop):
        every *= len(loop.dataloader)
    inside = [
        iteration for iteration in range(every, runner.max_iters, every)
        if iteration > schedule.begin
        and (iteration - schedule.begin) % schedule.period
    ]
    if inside:
        seen = ('the live weights' if wrapper.psw.write_back else
                'the average of the last whole period')
        print_log(
            f'psw: a validation every {every} iterations comes inside of '
            f'periods of {schedule.period} ({len(inside)} times): what is '
            f'validated and saved then are {seen}; evaluate=\'average\' shows '
            'the mean of the period so far',
            logger='current',
            level=logging.WARNING)


def _trains(runner: Runner) -> bool:
    """Whether ``before_run`` belongs to ``train()``: its loop is built."""
    return isinstance(getattr(runner, '_train_loop', None), BaseLoop)


def _psw_wrappers(optim_wrapper: Any) -> dict[str, PSWOptimWrapperMixin]:
    found = {
        name: wrapper
        for name, wrapper in _all_wrappers(optim_wrapper)
        if isinstance(wrapper, PSWOptimWrapperMixin)
    }
    if not found:
        raise ValueError(
            'PSWHook needs a PSWOptimWrapper, because that does the '
            f'averaging, but the optim_wrapper is a '
            f'{type(optim_wrapper).__name__}: add both lines to the '
            f'config.{HOW_TO_ENABLE}')
    return found


def _all_wrappers(optim_wrapper: Any) -> list[tuple[str, Any]]:
    if isinstance(optim_wrapper, OptimWrapperDict):
        return list(optim_wrapper.items())
    return [('', optim_wrapper)]


def _named_weights(resampler: PeriodicResampler) -> dict[str, Tensor]:
    """What all ranks must hold alike: buffers may be theirs alone."""
    live = resampler.tensors[:len(resampler.tensors) - len(resampler.buffers)]
    names = [
        resampler.names.get(tensor, f'parameter {i}')
        for i, tensor in enumerate(live)
    ]
    weights = dict(zip(names, live))
    if resampler.average is not None:
        weights.update((f'the average of {name}', mean)
                       for name, mean in zip(names, resampler.average))
    return weights


def random_batches(loader: DataLoader, count: int,
                    seed: int) -> Iterator[Any]:
    """Training batches from a loader of their own.

    The training's own loader may be in the middle of an epoch, and one with
    persistent workers has only one iterator. Nothing is done, and no worker
    is started, before the first batch is asked for.
    """
    seed = seed * get_world_size() + get_rank()
    size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
    own = DataLoader(
        loader.dataset,
        batch_size=size,
        sampler=RandomSampler(
            loader.dataset,
            num_samples=min(count * size, len(loader.dataset)),
            generator=torch.Generator().manual_seed(seed)),
        generator=torch.Generator().manual_seed(seed),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        drop_last=len(loader.dataset) >= size)
    yield from own

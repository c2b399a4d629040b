"""The Hook: it drives the followers, and does what needs the runner."""
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from mmpsw.engine.swapping import check_one_average, swapping_hooks
from mmpsw.methods.averaging import (
    PeriodicResampler,
    Resampling,
    recalibrate,
)
from mmpsw.methods.averaging.numbers import check_integer
from mmpsw.models import losses, unwrapped
from mmpsw.registry import HOOKS
from mmpsw.runtime.ranks import mean_over_ranks
from mmpsw.runtime.resume import (
    LIVE,
    fit_to_epoch_length,
    live_weights,
    named_tensors,
    restore_live_weights,
    skip_trained_batches,
)
from mmpsw.runtime.saving import save_safely

from .follower import Follower, follow, optim_wrappers, warn
from .optim_wrapper import PSWOptimWrapperMixin
from .settings import HOW_TO_ENABLE

__all__ = ['PSWHook', 'check_runner', 'random_batches']


@HOOKS.register_module()
class PSWHook(Hook):
    """Samples, resamples, and shows the average of a PSWOptimWrapper.

    The contract, in each iteration::

        train_step:         # the model's, which updates the weights
        after_train_iter:   # here: a sample, and a resampling where it is due

    - It refuses what is not supported, before the training starts.
    - With ``buffers='recalibrate'`` it recomputes batch-norm statistics after
      each resampling, by forward passes over training batches.
    - With ``write_back=False`` or ``evaluate='average'`` it puts the average
      into the model to validate and test, and into the checkpoint's
      ``state_dict``. The live weights are saved beside it, and put into the
      model when a run is resumed.
    - With several processes, the statistics' means are averaged over them.
    - A run that is resumed inside an epoch continues inside it; one with
      another number of processes continues at the same place in its epoch.
    - Checkpoints are saved by a :class:`SafeSavingHook`, which it adds.

    A stock EMAHook (priority NORMAL) sees the weights that were written back.

    Args:
        recalibrate_batches (int): Training batches for each recalibration.
            Defaults to 100, or one epoch if that is less.

    Raises:
        ValueError: ``recalibrate_batches`` is no integer >= 1.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self, recalibrate_batches: int = 100):
        check_integer('recalibrate_batches', recalibrate_batches, 1)
        self.recalibrate_batches = recalibrate_batches
        self.loaded: dict[str, Any] | None = None
        self._inside_said = False
        self._followed: BaseLoop | None = None

    def before_run(self, runner: Runner) -> None:
        """Follow the optimizers, when the run is a training.

        Raises:
            ValueError: Something is missing or not supported.
        """
        check_runner(runner)
        if (not isinstance(getattr(runner, '_train_loop', None), BaseLoop)
                or isinstance(runner.optim_wrapper, dict)):
            return  # a validation or a test
        if sum(isinstance(hook, PSWHook) for hook in runner.hooks) > 1:
            raise ValueError(
                'There are two PSWHooks, and each of them would sample every '
                'update: leave one of them out of custom_hooks.')
        wrappers = _psw_wrappers(runner)
        # A notebook may give built wrappers to a second Runner, or train one
        # for longer.
        if self._followed is not runner.train_loop:
            self._followed = runner.train_loop
            followers = follow(
                runner, {name: w.psw for name, w in wrappers.items()})
            for name, follower in followers.items():
                if wrappers[name].follower is not None:
                    wrappers[name].follower.heard.remove()
                wrappers[name].follower = follower
        for resampler in (w.resampler for w in wrappers.values()):
            resampler.schedule = replace(
                resampler.schedule, total=runner.max_iters)
        self._check_others(runner)
        save_safely(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what a resume needs until it is known whether this is one.

        Raises:
            ValueError: The runner is not supported.
        """
        check_runner(runner)
        if getattr(runner, '_resume', False):
            fit_to_epoch_length(checkpoint, runner)
        # mmengine may have loaded it onto the GPU.
        self.loaded = _on_cpu({
            'psw': checkpoint.get('psw', {}),
            LIVE: live_weights(runner, checkpoint)})
        for follower in _followers(runner).values():
            follower.resampler.forget()  # it was of other weights

    def before_train(self, runner: Runner) -> None:
        """Continue a run that is resumed, inside of its epoch too."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            skip_trained_batches(runner.train_loop)
        if runner.iter and self.loaded is not None:
            self._resume(runner)
        self.loaded = None
        self._inside_said = False
        _say_how_often(runner)
        if runner.val_loop is not None and any(
                follower.settings.shows_average
                for follower in _followers(runner).values()):
            # Hooks are not told of a validation that raises.
            runner.val_loop.run = self._then_show_live(
                runner, runner.val_loop.run)

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Sample; resample and recalibrate where a period ends."""
        due = []
        for name, follower in _followers(runner).items():
            done = follower.after_iteration(runner.iter + 1)
            if done is not None and done.applied:
                _log(runner, name, follower, done)
                if follower.settings.buffers == 'recalibrate':
                    due.append(follower.resampler)
        if due:
            self._recalibrate(runner, due)

    def before_val(self, runner: Runner) -> None:
        """Validate the average. Other hooks may begin with its features."""
        self._say_where_inside(runner)
        self._show_average(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        """The same, for a loop that does not announce itself."""
        self._show_average(runner)

    def after_val_epoch(self,
                        runner: Runner,
                        metrics: dict[str, float] | None = None) -> None:
        """Put the live weights back."""
        self._show_live(runner)

    def before_test(self, runner: Runner) -> None:
        """Test the average."""
        self._show_average(runner)

    def before_test_epoch(self, runner: Runner) -> None:
        """The same, for a loop that does not announce itself."""
        self._show_average(runner)

    def after_test_epoch(self,
                         runner: Runner,
                         metrics: dict[str, float] | None = None) -> None:
        """Put the live weights back."""
        self._show_live(runner)

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict) -> None:
        """Save the average as ``state_dict``: it is what a user deploys.

        The live weights and the averaging's state lie beside it. A tensor
        that is in two of them is saved once.
        """
        followers = _followers(runner)
        checkpoint['psw'] = {name: follower.state_dict()
                             for name, follower in followers.items()}
        tensors = named_tensors(runner.model)
        for owner, follower in followers.items():
            resampler = follower.resampler
            shown = checkpoint['psw'][owner].get(resampler.shows, {})
            live = follower.live() if shown else {}
            names = {tensor: name for name, tensor in resampler.weights.named(
                resampler.tensors).items()}
            for key, tensor in tensors.items():
                name = names.get(tensor)  # a tied one has several keys
                if name in shown:
                    checkpoint['state_dict'][key] = shown[name].to(
                        tensor.dtype)
                    # What two optimizers share, the first one has put aside.
                    checkpoint.setdefault(LIVE, {}).setdefault(
                        key, live[name].to('cpu', tensor.dtype))

    def _check_others(self, runner: Runner) -> None:
        shown = []
        for name, follower in _followers(runner).items():
            if follower.resampler.weights.sharded:
                raise _refusal('sharded weights (DTensors)')
            if follower.settings.shows_average:
                key = f'{name}.psw' if name else 'psw'
                shown = [f"{key}.evaluate='average'"
                         if follower.settings.write_back
                         else f'{key}.write_back=False']
            if (follower.settings.buffers == 'recalibrate' and isinstance(
                    runner.train_loop.dataloader.dataset, IterableDataset)):
                raise ValueError(
                    "psw.buffers='recalibrate' cannot be used, because the "
                    'training data set is iterable, so that no batches can be '
                    "drawn from it beside the training: use 'average'.")
        if shown:
            _check_saved_as_they_are(unwrapped(runner.model))
            check_one_average(shown + swapping_hooks(runner.hooks))
        if any(type(hook).__name__ == 'MeanTeacherHook'
               for hook in runner.hooks):
            warn('psw averages what is trained, the student; what the model '
                 'predicts with is the MeanTeacherHook\'s teacher, so that '
                 'the metrics do not show the average.')

    def _resume(self, runner: Runner) -> None:
        restore_live_weights(runner.model, self.loaded.get(LIVE, {}))
        for name, follower in _followers(runner).items():
            state = self.loaded.get('psw', {}).get(name)
            if state is None:
                warn("The checkpoint has no averaging state ('psw'), because "
                     'it was saved without psw: a fresh period begins, from '
                     'the weights in its state_dict.')
                continue
            others = follower.load_state_dict(state)
            if others:
                warn('The checkpoint was saved with other settings of psw '
                     f'({others}): a fresh period begins, from the live '
                     'weights.')

    def _then_show_live(self, runner: Runner, run: Callable) -> Callable:

        @functools.wraps(run)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return run(*args, **kwargs)
            finally:
                self._show_live(runner)

        return guarded

    def _show_average(self, runner: Runner) -> None:
        for follower in _followers(runner).values():
            follower.resampler.show_average()

    def _show_live(self, runner: Runner) -> None:
        for follower in reversed(_followers(runner).values()):
            follower.resampler.show_live()

    def _say_where_inside(self, runner: Runner) -> None:
        """Once, where a validation comes inside of a period."""
        for follower in _followers(runner).values():
            resampler = follower.resampler
            place = resampler.schedule.locate(resampler.iteration)
            if (self._inside_said or place is None or place.ends
                    or resampler.shows == 'mean'):
                continue
            self._inside_said = True
            seen = ('the live weights' if resampler.average is None else
                    'the average of the last whole period')
            why = ('before its window' if follower.settings.evaluate ==
                   'average' else "evaluate='average' shows the mean of the "
                   'period so far')
            warn(f'psw: the validation after iteration {resampler.iteration} '
                 f'comes inside of a period of {resampler.schedule.period}: '
                 f'what is validated and saved is {seen}; {why}')

    def _recalibrate(self, runner: Runner,
                     due: list[PeriodicResampler]) -> None:
        """Of the whole model as it is validated."""
        model = unwrapped(runner.model)
        with ExitStack() as stack:
            for follower in _followers(runner).values():
                if not follower.settings.write_back:
                    stack.enter_context(follower.resampler.averaged())
            for resampler in due:
                batches = random_batches(
                    runner.train_loop.dataloader, self.recalibrate_batches,
                    resampler.resamplings)
                with _forward_context(runner, model):
                    recalibrate(
                        model, functools.partial(losses, model), batches,
                        {layer for layer, _ in
                         resampler.weights.statistics.values()})
                mean_over_ranks(resampler.statistics)
                resampler.take_statistics()


def check_runner(runner: Any) -> None:
    """Refuse what shards the weights, or loads them otherwise than Runner.

    Raises:
        ValueError: The runner is a FlexibleRunner, or its model is wrapped in
            FullyShardedDataParallel.
    """
    strategy = getattr(runner, 'strategy', None)
    if strategy is not None:
        raise flexible_refused(type(strategy).__name__)
    model = type(getattr(runner, 'model', None)).__name__
    if 'FullyShardedDataParallel' in model:
        raise _refusal(model)


def _check_saved_as_they_are(model: torch.nn.Module) -> None:
    """A tensor is replaced by its average where it is saved."""
    saved = named_tensors(model)
    for name, param in model.named_parameters():
        if saved.get(name, param) is not param:
            raise ValueError(
                f'The average cannot be saved, because state_dict() of '
                f"{type(model).__name__} makes another tensor of '{name}': "
                'leave the conversion out, or use write_back=True.')


def flexible_refused(strategy: str) -> ValueError:
    """The error for a FlexibleRunner with this class of strategy."""
    return _refusal(f'FlexibleRunner with {strategy}')


def _refusal(what: str) -> ValueError:
    return ValueError(
        f'PSW cannot be used with {what}, because its checkpoints would lose '
        'the average, or hold the shards of one process: use Runner, on one '
        'device or with distributed data parallel, or train without psw.')


def _say_how_often(runner: Runner) -> None:
    """Where periods do not fit into the run."""
    for follower in _followers(runner).values():
        schedule = follower.resampler.schedule
        rest = (runner.max_iters - schedule.begin) % schedule.period
        if schedule.begin >= runner.max_iters:
            warn(f'psw.begin is iteration {schedule.begin}, but the run ends '
                 f'at {runner.max_iters}: the weights are never resampled.')
        elif schedule.begin + schedule.period > runner.max_iters:
            warn(f'psw.period is {schedule.period} iterations, but the run '
                 f'ends at {runner.max_iters}: the weights are resampled '
                 'only once, at its end.')
        elif schedule.end is None and 0 < 10 * rest < schedule.period:
            warn(f'psw: the last period is cut to {rest} of '
                 f'{schedule.period} iterations, so that the average that is '
                 f'saved at the end is of no more: train for {rest} less.')


def _log(runner: Runner, name: str, follower: Follower,
         done: Resampling) -> None:
    prefix = f'{name}.psw' if name else 'psw'
    runner.message_hub.update_scalar(
        f'train/{prefix}/samples', done.samples)
    runner.message_hub.update_scalar(f'train/{prefix}/shift', done.shift)
    verb = 'resampled' if follower.settings.write_back else 'averaged'
    print_log(
        f'{prefix}: weights {verb} at iteration {runner.iter + 1} '
        f'({type(follower.settings.technique).__name__}): psw/samples: '
        f'{done.samples}, psw/shift: {done.shift:.4g}',
        logger='current')


def _forward_context(runner: Runner, model: torch.nn.Module) -> Any:
    """Mixed precision where the training has it."""
    if isinstance(runner.optim_wrapper, OptimWrapperDict):
        return nullcontext()
    return runner.optim_wrapper.optim_context(model)


def _psw_wrappers(runner: Runner) -> dict[str, PSWOptimWrapperMixin]:
    found = {
        name: wrapper for name, wrapper in optim_wrappers(runner).items()
        if isinstance(wrapper, PSWOptimWrapperMixin)
    }
    if not found:
        raise ValueError(
            'PSWHook needs a PSWOptimWrapper, because that does the '
            f'averaging, but the optim_wrapper is a '
            f'{type(runner.optim_wrapper).__name__}: add both lines to the '
            f'config.{HOW_TO_ENABLE}')
    return found


def _followers(runner: Runner) -> dict[str, Follower]:
    """Those of a training; none where a runner only tests."""
    return {name: wrapper.follower
            for name, wrapper in optim_wrappers(runner).items()
            if getattr(wrapper, 'follower', None) is not None}


def _on_cpu(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _on_cpu(value) for key, value in node.items()}
    return node.cpu() if isinstance(node, torch.Tensor) else node


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

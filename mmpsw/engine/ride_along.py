"""Evaluates averages beside a run, which they do not change.

An average that is never written back needs no run of its own: it follows the
weights of another run, and is validated whenever that is.
"""
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process, master_only
from mmengine.fileio import dump
from mmengine.hooks import EMAHook, Hook, LoggerHook
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.runner.checkpoint import get_state_dict, weights_to_cpu

from mmpsw.checkpoints import whole_file
from mmpsw.models import unwrapped
from mmpsw.registry import HOOKS
from mmpsw.runtime.random_state import random_state, set_random_state

from .averaging.follower import follow, optim_wrappers
from .averaging.settings import PSWSettings
from .peers import EpochAverageHook, LookaheadHook, SwitchEMAHook
from .sparsity import mask_hooks

__all__ = ['RideAlongHook', 'passenger']


class _Followed:
    """PSW's average with ``write_back=False``, of each optimizer."""

    def __init__(self, psw: Mapping):
        self.settings = PSWSettings.from_config(psw)

    def begin(self, runner: Runner) -> None:
        self.followers = follow(
            runner, dict.fromkeys(optim_wrappers(runner), self.settings))

    def follow(self, runner: Runner) -> None:
        for follower in self.followers.values():
            follower.after_iteration(runner.iter + 1)

    @contextmanager
    def shown(self) -> Iterator[None]:
        with ExitStack() as stack:
            for follower in self.followers.values():
                stack.enter_context(follower.resampler.averaged())
            yield

    def state_dict(self) -> dict[str, Any]:
        return {name: follower.state_dict()
                for name, follower in self.followers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, follower in self.followers.items():
            others = follower.load_state_dict(state[name])
            if others:
                raise ValueError(
                    'An average cannot ride along with other settings than '
                    f'those of the checkpoint ({others}): resume with the '
                    'same, or give it another name.')


class _Averaged:
    """The average of an EMAHook, of mmengine or of the peers."""

    def __init__(self, hook: Mapping):
        self.hook = HOOKS.build(dict(hook))

    def begin(self, runner: Runner) -> None:
        self.runner = runner
        self.hook.before_run(runner)
        self.hook.before_train(runner)

    def follow(self, runner: Runner) -> None:
        self.hook.after_train_iter(runner, 0)
        for hook in mask_hooks(runner):
            hook.mask_average(self.hook.ema_model.module)

    @contextmanager
    def shown(self):
        self.hook._swap_ema_parameters()
        try:
            yield
        finally:
            self.hook._swap_ema_parameters()

    def state_dict(self) -> dict[str, Any]:
        return dict(average=self.hook.ema_model.state_dict(),
                    first=getattr(self.hook, 'first', None))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.hook.ema_model.load_state_dict(state['average'])
        if isinstance(self.hook, EpochAverageHook):
            self.hook.begin_elsewhere(self.runner, state['first'])


def passenger(fragment: Mapping) -> _Followed | _Averaged | None:
    """What a fragment evaluates beside a run; None if it needs its own.

    Args:
        fragment (dict): The settings of ``--with``: a ``psw`` with
            ``write_back=False`` that does not recalibrate, or an EMAHook that
            is not one of those that write back.
    """
    hooks = fragment.get('custom_hooks') or []
    psw = fragment.get('psw') or {}
    if (set(fragment) == {'psw'} and psw.get('write_back') is False
            and psw.get('buffers') != 'recalibrate'):
        return _Followed(psw)
    if set(fragment) == {'custom_hooks'} and len(hooks) == 1:
        average = _Averaged(hooks[0])
        if isinstance(average.hook, EMAHook) and not isinstance(
                average.hook, (LookaheadHook, SwitchEMAHook)):
            return average
    return None


@HOOKS.register_module()
class RideAlongHook(Hook):
    """Evaluates averages beside a run, each into a folder of its own.

    The run's weights, logs and random numbers stay what they are without it.
    A folder gets what the work directory of a run of its own would have: the
    metrics, and the averaged weights at the run's end, as a checkpoint.

    Args:
        averages (Dict[str, dict]): By their names, the settings of a fragment
            that only evaluates (see :func:`passenger`).
        folders (Dict[str, str]): Where each one's results go. A run is
            resumed by the names, so that a folder may have moved.

    Raises:
        ValueError: A fragment needs a run of its own, or a run is resumed in
            which an average was not there.
    """

    priority = 'NORMAL'

    def __init__(self, averages: dict[str, dict], folders: dict[str, str]):
        self.averages = {name: passenger(fragment)
                         for name, fragment in averages.items()}
        self.folders = {name: Path(folders[name]) for name in averages}
        for name, average in self.averages.items():
            if average is None:
                raise ValueError(
                    f"'{name}' cannot ride along, because its settings "
                    'change the run, or recalibrate: train it as a run of its '
                    'own.')
        self.loaded: dict[str, Any] = {}
        self.begun = False

    def before_train(self, runner: Runner) -> None:
        """Begin to follow the run, or go on with it."""
        self.begun = True
        for name, average in self.averages.items():
            average.begin(runner)
            if runner.iter:
                average.load_state_dict(self._state_of(name))
            if is_main_process():
                runner.cfg.dump(
                    _log_dir(runner, self.folders[name]) / 'config.py')

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Follow the run."""
        for average in self.averages.values():
            average.follow(runner)

    def after_val(self, runner: Runner) -> None:
        """Validate the averages, as the run itself was."""
        if not self.begun:
            return  # a validation alone
        before = random_state()
        for name, average in self.averages.items():
            folder = self.folders[name]
            with _shown(runner, average), _written_to(runner, folder):
                _log(runner, name, folder, _validate(runner))
        set_random_state(before)

    def after_train(self, runner: Runner) -> None:
        """Save the averages."""
        for name, average in self.averages.items():
            with _shown(runner, average):
                _save(runner, self.folders[name])

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict) -> None:
        """Save what a resume needs."""
        if 'optimizer' in checkpoint:  # not with the averaged weights
            checkpoint['ride_along'] = {
                name: average.state_dict()
                for name, average in self.averages.items()
            }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep it until the averages are built."""
        self.loaded = checkpoint.get('ride_along', {})

    def _state_of(self, name: str) -> dict[str, Any]:
        if name not in self.loaded:
            raise ValueError(
                f"'{name}' cannot ride along from here, because the "
                'checkpoint was saved without it: begin anew, or train it as '
                'a run of its own.')
        return self.loaded.pop(name)


@contextmanager
def _shown(runner: Runner, average: _Followed | _Averaged) -> Iterator[None]:
    """The average is in the model meanwhile, masked as the run's weights."""
    with average.shown():
        for hook in mask_hooks(runner):
            hook.mask_weights()
        yield


@master_only
def _log(runner: Runner, name: str, folder: Path,
         metrics: dict[str, Any]) -> None:
    """Write what mmengine's LoggerHook would."""
    by_epoch = next((hook.log_metric_by_epoch for hook in runner.hooks
                     if isinstance(hook, LoggerHook)), True)
    step = runner.epoch if by_epoch else runner.iter
    metrics = {key: value.tolist() if hasattr(value, 'tolist') else value
               for key, value in metrics.items()}
    lines = [dict(iter=runner.iter, step=runner.iter),
             dict(metrics, step=step)]
    with open(_log_dir(runner, folder) / 'scalars.json', 'a') as file:
        file.writelines(f"{dump(line, file_format='json')}\n"
                        for line in lines)
    shown = '  '.join(f'{k}: {v:.4f}' if isinstance(v, Real) else f'{k}: {v}'
                      for k, v in metrics.items())
    runner.logger.info(f'{name} rides along: {shown}')


class _Metrics(Hook):
    """What a validation found: a loop of a framework's own tells hooks."""

    def after_val_epoch(self, runner: Runner,
                        metrics: dict[str, float] | None = None) -> None:
        self.found = metrics


def _validate(runner: Runner) -> dict[str, float]:
    """What the run's loop does, without the hooks, which would log it.

    But with a framework's hooks that prepare a validation.
    """
    hooks, metrics = runner._hooks, _Metrics()
    runner._hooks = [
        hook for hook in hooks
        if type(hook).before_val is not Hook.before_val
        and type(hook).__module__.split('.')[0] not in ('mmengine', 'mmpsw')
    ] + [metrics]
    try:
        runner.val_loop.run()
    finally:
        runner._hooks = hooks
    return metrics.found


@contextmanager
def _written_to(runner: Runner, folder: Path) -> Iterator[None]:
    """Files of the run's evaluators, such as predictions, go to a folder."""
    before = [(metric, key, getattr(metric, key))
              for metric in getattr(getattr(
                  runner.val_loop, 'evaluator', None), 'metrics', ())
              for key in ('out_file_path', 'outfile_prefix', 'output_dir')
              if getattr(metric, key, None)]
    try:
        for metric, key, path in before:
            setattr(metric, key, str(folder / Path(path).name))
        yield
    finally:
        for metric, key, path in before:
            setattr(metric, key, path)


@master_only
def _save(runner: Runner, folder: Path) -> None:
    is_epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
    name = (f'epoch_{runner.epoch}.pth' if is_epochs
            else f'iter_{runner.iter}.pth')
    # Not by the runner, whose hooks would save their own average instead.
    meta = dict(epoch=runner.epoch, iter=runner.iter,
                cfg=runner.cfg.pretty_text)
    if hasattr(runner.train_dataloader.dataset, 'metainfo'):
        meta['dataset_meta'] = runner.train_dataloader.dataset.metainfo
    weights = get_state_dict(unwrapped(runner.model))
    with whole_file(folder / name) as partial:
        torch.save(dict(meta=meta, state_dict=weights_to_cpu(weights)),
                   partial)


def _log_dir(runner: Runner, folder: Path) -> Path:
    path = folder / runner.timestamp / 'vis_data'
    path.mkdir(parents=True, exist_ok=True)
    return path

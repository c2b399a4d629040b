"""Resuming: from the live weights, inside of an epoch, with other epochs."""
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmpsw.models import unwrapped

__all__ = [
    'LIVE', 'call_before_the_next_batch', 'fit_to_epoch_length',
    'live_weights', 'named_tensors', 'restore_live_weights',
    'skip_trained_batches'
]

# Beside a checkpoint's ``state_dict`` that is an average: the weights from
# which training continues, by the same names.
LIVE = 'live_state_dict'


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, by the names that mmengine saves them under."""
    return unwrapped(model).state_dict(keep_vars=True)


@torch.no_grad()
def restore_live_weights(model: nn.Module, live: dict[str, Tensor]) -> None:
    """Put the live weights into a model that was loaded with the average.

    Args:
        model (nn.Module): The model, or what wraps it.
        live (Dict[str, Tensor]): What a checkpoint held under ``LIVE``.
    """
    for name, tensor in named_tensors(model).items():
        if name in live:
            tensor.copy_(live[name])


def live_weights(runner: Runner, checkpoint: dict) -> dict[str, Tensor]:
    """The weights from which a checkpoint's training goes on, by name, where
    its ``state_dict`` is an average: psw's, or that of an EMAHook which this
    run does not have.

    Args:
        runner (Runner): The runner that loads it.
        checkpoint (dict): What was loaded.
    """
    if (getattr(runner, '_resume', False) and 'ema_state_dict' in checkpoint
            and not any(isinstance(hook, EMAHook) for hook in runner.hooks)):
        ema = checkpoint.pop('ema_state_dict')  # a second call says nothing
        checkpoint[LIVE] = {
            name.removeprefix('module.'): tensor
            for name, tensor in ema.items() if name.startswith('module.')}
        print_log('The checkpoint was saved with an EMAHook, which this run '
                  'does not have: training continues from the live weights, '
                  'and not from the average in its state_dict',
                  logger='current', level=logging.WARNING)
    return checkpoint.get(LIVE, {})


def fit_to_epoch_length(checkpoint: dict, runner: Runner) -> None:
    """Convert iterations where an epoch has another number of them, in place.

    Another number of processes, or another batch size, makes longer or shorter
    epochs. mmengine continues with the saved iteration's number, which is in
    another epoch now. Here a run continues at the same part of the same
    epoch, rounded down to an iteration, and at the same part of schedules
    whose epochs became iterations (``convert_to_iter_based``). In an
    iteration-based loop nothing is converted: there the number is the place.

    Args:
        checkpoint (dict): What was loaded, before anything is done with it.
        runner (Runner): The runner that resumes.
    """
    loop = runner.train_loop
    info = checkpoint.get('message_hub', {}).get('runtime_info', {})
    epochs = info.get('max_epochs')
    if not isinstance(loop, EpochBasedTrainLoop) or not epochs:
        return
    then, now = info['max_iters'] // epochs, len(loop.dataloader)
    if then == now:
        return
    info['max_iters'] = now * epochs  # so that a second call changes nothing
    before = checkpoint['meta']['iter']
    checkpoint['meta']['iter'] = before * now // then
    for built, saved in _schedulers(runner.param_schedulers,
                                    checkpoint.get('param_schedulers')):
        place = saved['begin'], saved['end']
        if not saved['by_epoch'] and place != (built.begin, built.end):
            saved.update({
                **built.state_dict(), '_last_value': saved['_last_value'],
                'base_values': saved['base_values'],
                'last_step': saved['last_step'] * now // then,
                '_global_step': saved['_global_step'] * now // then})
    print_log(
        f'An epoch had {then} iterations when the checkpoint was saved, and '
        f'has {now} here (another number of processes, batch size or data '
        f'set): iteration {before} becomes {checkpoint["meta"]["iter"]}',
        logger='current',
        level=logging.WARNING)


def _schedulers(built: Any, saved: Any) -> list[tuple[Any, dict]]:
    """Each with what was saved of it; of several optimizers, by name."""
    if not built or not saved:
        return []
    if isinstance(built, dict):
        return [pair for name in built
                for pair in _schedulers(built[name], saved.get(name))]
    return list(zip(built, saved))


def skip_trained_batches(loop: BaseLoop,
                         then: Callable[[], None] | None = None) -> int:
    """Make an epoch loop, resumed inside an epoch, continue inside it.

    mmengine's EpochBasedTrainLoop starts such an epoch again from its first
    batch, and by this trains more iterations than it should. The batches that
    were trained before are read and left out instead, as
    IterBasedTrainLoop does. A second call changes nothing.

    Args:
        loop (BaseLoop): The training loop, after the resume.
        then (Callable, optional): Called after the batches were left out,
            before the first other one is read.

    Returns:
        int: How many batches the first epoch will skip.
    """
    if isinstance(loop.dataloader, _Remaining):
        return 0
    trained = loop.iter - loop.epoch * len(loop.dataloader)
    if trained <= 0:
        return 0
    print_log(
        f'Skip the first {trained} batches of this epoch, which were trained '
        'before the interruption',
        logger='current')
    loop.dataloader = _Remaining(loop, loop.dataloader, trained, then)
    return trained


def call_before_the_next_batch(loop: BaseLoop,
                               then: Callable[[], None]) -> None:
    """Call a function before an iteration loop reads what it trains first.

    A resumed IterBasedTrainLoop reads all batches that were trained before,
    and by this draws their random numbers, but not those that the model drew.

    Args:
        loop (BaseLoop): The training loop, after the resume. One that has no
            ``dataloader_iterator`` is its author's: the call comes at once.
        then (Callable): What is called, once.
    """
    batches = getattr(loop, 'dataloader_iterator', None)
    if batches is None:
        then()
    else:
        loop.dataloader_iterator = _Trained(loop, batches, then)


class _Trained:
    """An iterator that is in its loop until the trained batches are read."""

    def __init__(self, loop: BaseLoop, batches: Iterator[Any],
                 then: Callable[[], None]):
        self.loop = loop
        self.batches = batches
        self.then = then
        # onedl-mmengine's loop does not read them, it calls skip_iter; and
        # its iterator begins late, and by this draws a number.
        self.left = 0 if hasattr(batches, 'skip_iter') else loop.iter
        self.begin = getattr(batches, '_ensure_iterator', lambda: None)

    def __next__(self) -> Any:
        if not self.left:
            self.loop.dataloader_iterator = self.batches
            self.begin()
            self.then()
        self.left -= 1
        return next(self.batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)


class _Remaining:
    """A data loader without its first batches, once."""

    def __init__(self, loop: BaseLoop, dataloader: DataLoader, trained: int,
                 then: Callable[[], None] | None):
        self.loop = loop
        self.dataloader = dataloader
        self.trained = trained
        self.then = then

    def __iter__(self) -> Iterator[Any]:
        loop, run_iter = self.loop, self.loop.run_iter
        loop.dataloader = self.dataloader
        batches = iter(self.dataloader)
        for done in range(self.trained):
            if next(batches, None) is None:
                raise ValueError(
                    f'The run cannot be resumed inside of its epoch, because '
                    f'{self.trained} batches of it were trained, and it has '
                    f'only {done} here (another batch size or number of '
                    'processes): resume with resume=True and load_from, '
                    'which converts the place.')
        if self.then is not None:
            self.then()
        # The loop counts what it gets; logs tell the place in the epoch.
        loop.run_iter = lambda index, batch: run_iter(
            index + self.trained, batch)
        try:
            yield from batches
        finally:
            loop.run_iter = run_iter

    def __len__(self) -> int:
        return len(self.dataloader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataloader, name)

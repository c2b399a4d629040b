"""Resuming, on a torch that loads weights only, and inside of an epoch."""
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import BaseLoop, EpochBasedTrainLoop
from mmengine.utils import digit_version
from torch.utils.data import DataLoader

__all__ = [
    'allow_resume', 'fit_to_epoch_length', 'plain_data', 'skip_trained_batches'
]

NUMBERS = ('float64', 'float32', 'float16', 'int64', 'int32', 'bool')


def allow_resume() -> None:
    """Allow what an mmengine checkpoint holds beside tensors.

    Since torch 2.6 ``torch.load`` reads weights only by default, and refuses
    the message hub's ``HistoryBuffer`` and its numpy arrays, so that
    ``--resume`` of stock mmengine 0.10 fails. These are plain data. With them
    on the list, ``weights_only`` stays on, and code in a checkpoint still
    cannot run: a HistoryBuffer names its methods through ``getattr``, for
    which a function stands in that finds nothing else.
    """
    if digit_version(torch.__version__) < digit_version('2.6.0'):
        return
    torch.serialization.add_safe_globals(plain_data())


def plain_data() -> list[Any]:
    """What mmengine saves beside tensors: classes, and others by name."""
    reconstruct = np.ndarray(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    renamed: list[tuple[Callable, str]] = [
        (_history_method, 'builtins.getattr')
    ]
    for core in ('numpy.core', 'numpy._core'):  # numpy 1 and 2
        renamed.append((reconstruct, f'{core}.multiarray._reconstruct'))
        renamed.append((scalar, f'{core}.multiarray.scalar'))
    dtypes = {type(np.dtype(number)) for number in NUMBERS}
    return [HistoryBuffer, np.ndarray, np.dtype, *dtypes, *renamed]


def _history_method(owner: Any, name: str) -> Callable:
    """``getattr``, for the public methods of HistoryBuffer only."""
    method = inspect.getattr_static(owner, name, None)
    if (owner is not HistoryBuffer or name.startswith('_')
            or not inspect.isfunction(method)):
        raise ValueError(f'A checkpoint asks for {name!r} of {owner!r}, which '
                         'no checkpoint of mmengine does: it is not loaded.')
    return method


def fit_to_epoch_length(checkpoint: dict, loop: BaseLoop) -> None:
    """Convert iterations where an epoch has another number of them, in place.

    Another number of processes, or another batch size, makes longer or shorter
    epochs. mmengine goes on with the saved iteration's number, which stands
    in another epoch now. Here a run goes on at the same part of the same
    epoch, rounded down to an iteration. In an iteration-based loop nothing is
    converted: there the number is the place.

    Args:
        checkpoint (dict): What was loaded, before anything is done with it.
        loop (BaseLoop): The training loop.
    """
    info = checkpoint.get('message_hub', {}).get('runtime_info', {})
    epochs = info.get('max_epochs')
    if not isinstance(loop, EpochBasedTrainLoop) or not epochs:
        return
    then, now = info['max_iters'] // epochs, len(loop.dataloader)
    if then == now:
        return
    info['max_iters'] = now * epochs  # so that a second call changes nothing
    places = [(checkpoint['meta'], 'iter')]
    places += [(psw, 'iteration') for psw in _psw_states(checkpoint)]
    before = checkpoint['meta']['iter']
    for state, key in places:
        state[key] = state[key] * now // then
    print_log(
        f'An epoch had {then} iterations when the checkpoint was saved, and '
        f'has {now} here (another number of processes, batch size or data '
        f'set): iteration {before} becomes {checkpoint["meta"]["iter"]}',
        logger='current',
        level=logging.WARNING)


def _psw_states(checkpoint: dict) -> list[dict]:
    """Of the optimizer wrapper, or of each one in an OptimWrapperDict."""
    saved = checkpoint.get('optimizer', {})
    wrappers = [saved, *saved.values()]
    return [w['psw'] for w in wrappers if isinstance(w, dict) and 'psw' in w]


def skip_trained_batches(loop: BaseLoop,
                         then: Callable[[], None] | None = None) -> int:
    """Make an epoch loop, resumed inside an epoch, go on inside it.

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


class _Remaining:
    """A data loader without its first batches, once."""

    def __init__(self, loop: BaseLoop, dataloader: DataLoader, trained: int,
                 then: Callable[[], None] | None):
        self.loop = loop
        self.dataloader = dataloader
        self.trained = trained
        self.then = then

    def __iter__(self) -> Iterator[Any]:
        self.loop.dataloader = self.dataloader
        batches = iter(self.dataloader)
        for _ in range(self.trained):
            next(batches)
        if self.then is not None:
            self.then()
        return batches

    def __len__(self) -> int:
        return len(self.dataloader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataloader, name)

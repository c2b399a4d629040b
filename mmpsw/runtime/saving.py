"""A new checkpoint is whole on the disk before the old one is removed."""
import fcntl
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from mmengine.dist import master_only
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmpsw.checkpoints import PARTIAL, read, whole_file
from mmpsw.registry import HOOKS

__all__ = ['SafeSavingHook', 'hold_work_dir', 'save_safely']


@HOOKS.register_module()
class SafeSavingHook(Hook):
    """Saves so that a kill or a full disk never costs the last checkpoint.

    mmengine's CheckpointHook removes the checkpoint that is one too many,
    then writes the new one in its place, then the file that names it. With
    ``max_keep_ckpts=1`` a run that ends in between has nothing left. With
    this hook the order is:

    1. the checkpoint is written under another name, in the same folder,
    2. it is flushed to the disk, and gets its own name in one step,
    3. so does ``last_checkpoint``, which names it,
    4. the old ones, of ``max_keep_ckpts`` and ``save_best``, are removed.

    What is saved, and when, stays mmengine's business. PSWHook and
    tools/train.py add this hook; a stock run may have it in ``custom_hooks``,
    as ``dict(type='mmpsw.SafeSavingHook')``.

    Raises:
        ValueError: Another process is training in this work dir.
        OSError: A checkpoint could not be written. No part of it is left,
            and the ones before it are still there.
    """

    priority = 'LOWEST'  # the CheckpointHook has chosen its folder before

    def before_train(self, runner: Runner) -> None:
        """Take over the saving of a Runner (not of a FlexibleRunner)."""
        if not isinstance(runner, Runner):
            return
        hold_work_dir(runner.work_dir)
        for hook in _checkpoint_hooks(runner):
            hook.file_backend = _RemovesLater(hook.file_backend)
            _remove_partial_files(hook.out_dir)
        if 'save_checkpoint' not in vars(runner):
            save = functools.partial(_save, runner, runner.save_checkpoint)
            runner.save_checkpoint = master_only(save)


def _save(runner: Runner, stock_save: Callable[..., None], out_dir: str,
          filename: str, *args: Any, **kwargs: Any) -> None:
    path = os.path.join(out_dir, filename)
    if _is_local(out_dir, kwargs.get('backend_args')):
        with whole_file(path) as partial:
            stock_save(out_dir, partial.name, *args, **kwargs)
        if not hasattr(runner, 'looked_at_a_checkpoint'):
            runner.looked_at_a_checkpoint = True
            _look(path)
    else:  # an object is there whole, or not at all
        stock_save(out_dir, filename, *args, **kwargs)
    for hook in _checkpoint_hooks(runner):
        if hook.last_ckpt == path:
            with whole_file(Path(runner.work_dir,
                                 'last_checkpoint')) as partial:
                partial.write_text(path)
    for hook in _checkpoint_hooks(runner):
        hook.file_backend.remove_outdated(path)


def _checkpoint_hooks(runner: Runner) -> list[CheckpointHook]:
    return [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]


def _look(path: str) -> None:
    """Say of the first checkpoint what a resume would find."""
    try:
        read(path, whole=False)
    except ValueError as error:
        print_log("This run's checkpoints will be refused by --resume and "
                  'test.py, unless what goes into them (such as metainfo of '
                  f'the data set) is plain data: {error}', 'current',
                  logging.WARNING)


def save_safely(runner: Any) -> None:
    """Add a SafeSavingHook, unless the config has one."""
    if not any(isinstance(hook, SafeSavingHook) for hook in runner.hooks):
        runner.register_hook(SafeSavingHook())


_held: dict[str, TextIO] = {}


@master_only
def hold_work_dir(work_dir: str | Path) -> None:
    """Let no other process train in a work dir, as long as this one lives.

    Two runs in one would remove each other's checkpoints.

    Raises:
        ValueError: Another process does.
    """
    place = os.path.realpath(work_dir)
    if place in _held:
        return
    os.makedirs(place, exist_ok=True)
    file = open(os.path.join(place, '.mmpsw.lock'), 'w')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise ValueError(
            f"'{work_dir}' cannot be trained in, because another process is "
            'training there, and they would remove each other\'s '
            'checkpoints: wait for it, or give another --work-dir') from error
    except OSError:  # a file system without locks
        file.close()
        return
    # The data's workers, which may outlive the process, do not hold it.
    os.register_at_fork(after_in_child=file.close)
    _held[place] = file


class _RemovesLater:
    """A file backend that removes files when the next one is complete."""

    def __init__(self, backend: Any):
        self.backend = backend
        self.outdated: list[str] = []

    def remove(self, path: str) -> None:
        self.outdated.append(path)

    def remove_outdated(self, newest: str) -> None:
        for path in self.outdated:
            if path != newest and self.backend.isfile(path):
                self.backend.remove(path)
        self.outdated.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


@master_only
def _remove_partial_files(folder: str) -> None:
    """Remove what a killed run has left."""
    for partial in Path(folder).glob(f'.*{PARTIAL}'):
        partial.unlink(missing_ok=True)


def _is_local(folder: str, backend_args: dict | None) -> bool:
    backend = get_file_backend(folder, backend_args=backend_args)
    return isinstance(backend, LocalBackend)

"""A resumed run draws the random numbers that the uninterrupted one draws."""
import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmpsw.registry import HOOKS

from .resume import (
    call_before_the_next_batch,
    fit_to_epoch_length,
    live_weights,
    restore_live_weights,
    skip_trained_batches,
)

__all__ = ['RandomStateHook']


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Saves the state of the random generators, and restores it on resume.

    mmengine saves the seed only, so that a resumed run draws other
    augmentations and dropout than the run that was not interrupted. A
    validation draws numbers too; here they do not change the training's.

    As with :class:`PSWHook`, a run that is resumed inside an epoch continues
    inside it. Where a checkpoint's ``state_dict`` is an average, it continues
    from the live weights.

    Exact in a single process whose data loader has no persistent workers
    (those have generators of their own, which nobody can restore). With
    onedl-mmengine, whose iteration-based loop does not read the skipped
    batches, workers draw other numbers. With several processes nothing is
    restored, because the checkpoint is that of one of them: said in the log.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.epoch_start = random_state()
        self.loaded: dict[str, Any] = {}
        self.live: dict[str, torch.Tensor] = {}
        self.before_validation: dict[str, Any] | None = None

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict) -> None:
        """Add the states, as tensors and plain numbers."""
        # Where a validation is the best so far, mmengine saves inside of it.
        checkpoint['random_state'] = dict(
            now=self.before_validation or random_state(),
            epoch_start=self.epoch_start)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember the states until it is known whether this is a resume."""
        if getattr(runner, '_resume', False):
            fit_to_epoch_length(checkpoint, runner)
        self.live = live_weights(runner, checkpoint)
        self.loaded = checkpoint.get('random_state', {})

    def before_train(self, runner: Runner) -> None:
        """Go on where the run was interrupted."""
        loop = runner.train_loop
        if not runner.iter:  # what was loaded is where a new run begins
            self.live, self.loaded = {}, {}
        restore_live_weights(runner.model, self.live)
        self.live = {}
        if self.loaded and get_world_size() > 1:
            self.loaded = {}
            print_log('The random generators are not restored, because the '
                      'checkpoint has those of one process only: dropout and '
                      'augmentations draw other numbers than in a run that '
                      'was not interrupted', logger='current')
        if isinstance(loop, EpochBasedTrainLoop):
            if skip_trained_batches(loop, self._restore):
                set_random_state(self.loaded.get('epoch_start', {}))
            else:
                self._restore()
        elif self.loaded:
            call_before_the_next_batch(loop, self._restore)

    def before_train_epoch(self, runner: Runner) -> None:
        """Remember with what this epoch's data begins."""
        self.epoch_start = random_state()

    def before_train_iter(self, runner: Runner, *args: Any,
                          **kwargs: Any) -> None:
        """A validation may have ended without a word (``after_val``)."""
        self.before_validation = None

    def before_val(self, runner: Runner) -> None:
        """Remember the state of the training."""
        self.before_validation = random_state()

    def after_val(self, runner: Runner) -> None:
        """Go on with it."""
        if self.before_validation is not None:
            set_random_state(self.before_validation)
            self.before_validation = None

    def _restore(self) -> None:
        set_random_state(self.loaded.get('now', {}))
        self.loaded = {}


def random_state() -> dict[str, Any]:
    """The state of all global generators, as tensors and plain numbers."""
    kind, keys, *rest = np.random.get_state()
    return dict(
        python=random.getstate(),
        numpy=(kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all()
        if torch.cuda.is_available() else [])


def set_random_state(state: dict[str, Any]) -> None:
    """Put generators into a state of :func:`random_state`, or part of it."""
    if 'python' in state:
        random.setstate(state['python'])
    if 'numpy' in state:
        kind, keys, *rest = state['numpy']
        keys = keys.cpu().numpy().astype(np.uint32)
        np.random.set_state((kind, keys, *rest))
    if 'torch' in state:
        torch.set_rng_state(state['torch'].cpu())
    gpus = range(torch.cuda.device_count())  # another machine has others
    for index, part in zip(gpus, state.get('cuda', [])):
        torch.cuda.set_rng_state(part.cpu(), index)

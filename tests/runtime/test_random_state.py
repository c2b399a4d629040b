"""A resumed run draws what the uninterrupted one draws."""
import random

import numpy as np
import pytest
import torch
import toy
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, ValLoop
from mmengine.runner.loops import _InfiniteDataloaderIterator
from reference import assert_equal

from mmpsw.runtime.random_state import (
    RandomStateHook,
    random_state,
    set_random_state,
)

DRAWN = []


class Noise(toy.Points):
    """Augments with every global generator."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.1 * sum(draw()), y


class Draws(Hook):
    """A model that drops out and mixes its images, and a validation that
    draws too."""

    def after_train_iter(self, runner, *args, **kwargs):
        DRAWN.append(draw())

    def before_val_iter(self, runner, *args, **kwargs):
        draw()


def draw():
    """A number of each global generator."""
    return random.random(), np.random.rand(), torch.rand(()).item()


def train(work_dir, by_epoch, **keys):
    cfg = dict(by_epoch=True, max_epochs=3) if by_epoch else dict(
        by_epoch=False, max_iters=18, val_interval=6)
    DRAWN.clear()
    runner = toy.trained(
        work_dir, train_cfg=cfg, dataset=Noise(),
        sampler='DefaultSampler' if by_epoch else 'InfiniteSampler',
        hooks=[dict(type='mmpsw.RandomStateHook'), Draws()], **keys)
    return runner.model, list(DRAWN)


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('iteration', [1, 6, 9, 12])
@pytest.mark.parametrize('best', [{}, dict(save_best='error', rule='less')])
def test_a_resumed_run_draws_the_same(tmp_path, by_epoch, iteration, best):
    """With save_best, mmengine saves a second time inside of validations."""
    whole, drawn = train(tmp_path / 'whole', by_epoch, checkpoint=dict(
        by_epoch=False, interval=1, **best))
    rest, drawn_after = train(
        tmp_path / 'rest', by_epoch,
        resume_from=tmp_path / f'whole/iter_{iteration}.pth')
    assert drawn_after == drawn[iteration:]
    assert_equal(whole, rest)


@pytest.mark.parametrize('by_epoch', [True, pytest.param(
    False, marks=pytest.mark.skipif(
        hasattr(_InfiniteDataloaderIterator, 'skip_iter'),
        reason='onedl-mmengine does not read the skipped batches'))])
def test_workers_draw_the_same(tmp_path, by_epoch):
    whole, drawn = train(tmp_path / 'whole', by_epoch, workers=2,
                         checkpoint=dict(by_epoch=False, interval=9))
    rest, drawn_after = train(tmp_path / 'rest', by_epoch, workers=2,
                              resume_from=tmp_path / 'whole/iter_9.pth')
    assert drawn_after == drawn[9:]
    assert_equal(whole, rest)


class Plain(BaseLoop):
    """Somebody's own training loop."""

    iter = 1  # it is resumed
    epoch = max_iters = max_epochs = 0
    val_loop = None

    def run(self):
        self.runner.call_hook('before_train')
        self.drawn = draw()
        self.runner.call_hook('after_train')


class Announces(ValLoop):
    """A validation that says when it begins, and not when it ends."""

    def run(self):
        self.runner.call_hook('before_val')
        draw()


def test_a_loop_of_ones_own(tmp_path):
    runner = toy.runner(tmp_path, validate=False,
                        hooks=[dict(type='mmpsw.RandomStateHook')])
    runner._train_loop = loop = Plain(runner, runner._train_dataloader)
    hook = next(hook for hook in runner.hooks
                if isinstance(hook, RandomStateHook))
    hook.loaded = dict(now=random_state())
    expected = draw()
    runner.train()
    assert loop.drawn == expected


def test_a_validation_that_ends_without_a_word(tmp_path):
    train(tmp_path, True, checkpoint=dict(by_epoch=False, interval=1),
          val_cfg=dict(type=Announces))
    first, second = (torch.load(
        tmp_path / f'iter_{step}.pth', weights_only=False)
        ['random_state']['now']['torch'] for step in (8, 9))
    assert not torch.equal(first, second)


def test_the_state_is_tensors_and_plain_numbers(tmp_path):
    torch.save(random_state(), tmp_path / 'state.pth')
    expected = random.random(), np.random.rand(), torch.rand(())
    set_random_state(torch.load(tmp_path / 'state.pth', weights_only=True))
    assert (random.random(), np.random.rand(), torch.rand(())) == expected

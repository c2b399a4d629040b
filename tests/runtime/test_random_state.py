"""A resumed run draws what the uninterrupted one draws."""
import random

import numpy as np
import pytest
import torch
import toy
from mmengine.hooks import Hook
from reference import assert_equal

from mmpsw.runtime.random_state import random_state, set_random_state

DRAWN = []


class Noise(toy.Points):
    """Augments with every global generator."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        drawn = random.random() + np.random.rand()
        return x + 0.1 * drawn, y


class Draws(Hook):
    """A model that drops out, and a validation that draws too."""

    def after_train_iter(self, runner, *args, **kwargs):
        DRAWN.append(torch.rand(()).item())

    def before_val_iter(self, runner, *args, **kwargs):
        torch.rand(3)
        np.random.rand(3)
        random.random()


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


def test_the_state_is_tensors_and_plain_numbers(tmp_path):
    torch.save(random_state(), tmp_path / 'state.pth')
    expected = random.random(), np.random.rand(), torch.rand(())
    set_random_state(torch.load(tmp_path / 'state.pth', weights_only=True))
    assert (random.random(), np.random.rand(), torch.rand(())) == expected

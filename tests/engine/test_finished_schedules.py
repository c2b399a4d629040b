"""Two fragments for what comes after a finished schedule."""
import math

import pytest
import torch
from toy import Weights, trained

from mmpsw.configs import load_fragment

EPOCH = 6  # iterations


class Rates(Weights):
    """The learning rate of each iteration, and the weights after it."""

    def before_run(self, runner):
        self.rates = []

    def before_train_iter(self, runner, *args, **kwargs):
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])


def run(tmp_path, name, **keys):
    fragment = load_fragment(name).to_dict()
    seen = Rates()
    runner = trained(
        tmp_path, psw=fragment.get('psw'),
        hooks=[*fragment.get('custom_hooks', ()), seen],
        param_scheduler=fragment['param_scheduler'], **keys)
    return runner, seen


@pytest.mark.parametrize('loop', [
    dict(by_epoch=True, max_epochs=3),
    dict(type='IterBasedTrainLoop', max_iters=3 * EPOCH)])
def test_swa_falls_along_a_cosine_in_each_epoch(tmp_path, loop):
    _, seen = run(tmp_path, 'swa_finetune', train_cfg=loop, validate=False)
    cycle = [0.05 * (0.01 + 0.99 * (1 + math.cos(math.pi * t / EPOCH)) / 2)
             for t in range(EPOCH)]
    assert seen.rates == pytest.approx(3 * cycle)
    saved = torch.load(tmp_path / f'iter_{3 * EPOCH}.pth', weights_only=False)
    ends = [seen.after[end - 1] for end in (EPOCH, 2 * EPOCH, 3 * EPOCH)]
    for key, value in saved['state_dict'].items():
        if value.is_floating_point():
            torch.testing.assert_close(value, torch.stack(
                [end[key] for end in ends]).mean(0))


def test_extending_keeps_a_share_of_the_rate(tmp_path):
    _, seen = run(tmp_path, 'extend:factor=0.1', validate=False)
    assert seen.rates == pytest.approx(4 * EPOCH * [0.005])
    saved = torch.load(tmp_path / 'iter_12.pth', weights_only=False)
    for key, value in saved['state_dict'].items():
        if value.is_floating_point():
            torch.testing.assert_close(value, torch.stack([
                state[key] for state in seen.after[EPOCH:2 * EPOCH]]).mean(0))

"""The peers against their public definitions, computed step by step."""
import copy

import pytest
import torch
import toy
from mmengine.hooks import Hook

MAX_EPOCHS = 4
EPOCH = 6
EMA = 0.3


class Recorder(Hook):
    """Keeps the live weights after each iteration, before any other hook."""

    priority = 'HIGHEST'

    def __init__(self):
        self.starts = []
        self.live = []
        self.shown = []

    def before_train_iter(self, runner, *args, **kwargs):
        self.starts.append(copy.deepcopy(runner.model.state_dict()))

    def after_train_iter(self, runner, *args, **kwargs):
        self.live.append(copy.deepcopy(runner.model.state_dict()))

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            self.shown.append(copy.deepcopy(runner.model.state_dict()))


def train(tmp_path, hook, **keys):
    recorder = Recorder()
    runner = toy.runner(tmp_path, hooks=[hook, recorder], **keys)
    runner.train()
    return runner, recorder


def means(states):
    return {
        name: torch.stack([state[name] for state in states]).double().mean(0)
        for name, value in states[0].items() if value.is_floating_point()
    }


def assert_close(state, expected):
    for name, value in expected.items():
        torch.testing.assert_close(state[name].double(), value.double(),
                                   rtol=1e-5, atol=1e-7, msg=name)


def loops():
    return pytest.mark.parametrize('train_cfg', [
        dict(by_epoch=True, max_epochs=MAX_EPOCHS),
        dict(by_epoch=False, max_iters=MAX_EPOCHS * EPOCH, val_interval=EPOCH)
    ])


@loops()
def test_swa_is_the_mean_of_the_late_epoch_ends(tmp_path, train_cfg):
    hook = dict(type='mmpsw.EpochAverageHook',
                ema_type='StochasticWeightAverage', begin=0.5,
                update_buffers=True)
    _, seen = train(
        tmp_path, hook, train_cfg=train_cfg,
        sampler='DefaultSampler'
        if train_cfg['by_epoch'] else 'InfiniteSampler')
    ends = seen.live[EPOCH - 1::EPOCH]
    # Half of the training is two epochs: the second end is the first sample.
    for shown, samples in zip(
            seen.shown, [ends[:1], ends[1:2], ends[1:3], ends[1:4]]):
        assert_close(shown, means(samples))


@loops()
def test_lawa_is_the_mean_of_the_last_epoch_ends(tmp_path, train_cfg):
    hook = dict(type='mmpsw.EpochAverageHook',
                ema_type='mmpsw.LatestWeightAverage', last=2)
    runner, seen = train(
        tmp_path, hook, train_cfg=train_cfg,
        sampler='DefaultSampler'
        if train_cfg['by_epoch'] else 'InfiniteSampler')
    ends = seen.live[EPOCH - 1::EPOCH]
    for shown, samples in zip(
            seen.shown, [ends[:1], ends[0:2], ends[1:3], ends[2:4]]):
        assert_close(shown, means(samples))
    assert_close(runner.model.state_dict(), ends[-1])


def test_nothing_that_is_only_evaluated_changes_the_training(tmp_path):
    plain, _ = train(tmp_path / 'a', Hook())
    for i, arm in enumerate((
            dict(type='EMAHook', momentum=0.02, update_buffers=True),
            dict(type='mmpsw.EpochAverageHook',
                 ema_type='mmpsw.LatestWeightAverage'),
            dict(type='mmpsw.EpochAverageHook',
                 ema_type='StochasticWeightAverage', begin=0.75))):
        other, _ = train(tmp_path / str(i), arm)
        for name, value in plain.model.state_dict().items():
            assert torch.equal(other.model.state_dict()[name], value), name


def test_switch_ema_trains_on_from_the_average(tmp_path):
    """theta_ema <- (1 - m) theta_ema + m theta; each epoch theta <- theta_ema.

    (Li et al. 2024, algorithm 1, with mmengine's name for the rate.)
    """
    hook = dict(type='mmpsw.SwitchEMAHook', momentum=EMA, update_buffers=True)
    runner, seen = train(tmp_path, hook)
    average = None
    for i, live in enumerate(seen.live):
        live = {k: v for k, v in live.items() if v.is_floating_point()}
        average = live if average is None else {
            name: (1 - EMA) * average[name] + EMA * value
            for name, value in live.items()
        }
        if (i + 1) % EPOCH == 0:
            # It is validated, and it is where training goes on.
            assert_close(seen.shown[i // EPOCH], average)
            assert_close((seen.starts + [runner.model.state_dict()])[i + 1],
                         average)
    assert_close(runner.model.state_dict(), average)


def test_lookahead_synchronises_from_the_first_weights_on(tmp_path):
    """slow <- slow + alpha (fast - slow); fast <- slow, every k updates.

    (Zhang et al. 2019, algorithm 1: the slow weights begin where training
    does. On a ramp of 1 an update from 0, k = 5 and alpha = 0.5 give 2.5 and
    5.0.)
    """
    k, alpha = 5, 0.4
    hook = dict(type='mmpsw.LookaheadHook', k=k, alpha=alpha)
    runner, seen = train(tmp_path, hook)
    names = [name for name, _ in runner.model.named_parameters()]
    slow = {name: seen.starts[0][name] for name in names}
    ends = seen.starts[1:] + [runner.model.state_dict()]
    for i, (fast, after) in enumerate(zip(seen.live, ends), start=1):
        if i % k == 0:
            slow = {
                name: slow[name] + alpha * (fast[name] - slow[name])
                for name in names
            }
            assert_close(after, slow)
        else:
            assert_close(after, {name: fast[name] for name in names})
        if i % EPOCH == 0:
            assert_close(seen.shown[i // EPOCH - 1], slow)


@pytest.mark.parametrize('hook', [
    dict(type='mmpsw.LookaheadHook', k=4, alpha=0.3),
    dict(type='mmpsw.SwitchEMAHook', momentum=EMA, update_buffers=True),
    dict(type='mmpsw.EpochAverageHook',
         ema_type='mmpsw.LatestWeightAverage', last=2),
    dict(type='mmpsw.EpochAverageHook', ema_type='StochasticWeightAverage',
         begin=0.25, update_buffers=True),
])
def test_resumed_peers_end_as_uninterrupted_ones(tmp_path, hook):
    whole, _ = train(tmp_path / 'whole', hook,
                     checkpoint=dict(interval=1))
    resumed, _ = train(
        tmp_path / 'rest', hook, checkpoint=dict(interval=1), resume=True,
        load_from=str(tmp_path / 'whole/epoch_2.pth'))
    expected = torch.load(tmp_path / 'whole/epoch_4.pth', weights_only=False)
    found = torch.load(tmp_path / 'rest/epoch_4.pth', weights_only=False)
    for name, value in expected['state_dict'].items():
        assert torch.equal(found['state_dict'][name], value), name
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


@pytest.mark.parametrize('hook, message', [
    (dict(type='mmpsw.EpochAverageHook', begin=1), 'begin=1'),
    (dict(type='mmpsw.EpochAverageHook',
          ema_type='mmpsw.LatestWeightAverage', last=0), 'last=0'),
])
def test_bad_settings_are_refused(tmp_path, hook, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, hook)

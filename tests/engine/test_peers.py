"""The peers against their public definitions, computed step by step."""
import copy

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from reference import assert_equal
from toy import Toy, Weights, runner, trained

EPOCH = 6
EMA = 0.3
BETA = 0.8


class Recorder(Weights):
    """Keeps also what a validation sees, and where each iteration begins."""

    def __init__(self):
        super().__init__()
        self.starts = []
        self.shown = []

    def before_train_iter(self, runner, *args, **kwargs):
        self.starts.append(copy.deepcopy(runner.model.state_dict()))

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            self.shown.append(copy.deepcopy(runner.model.state_dict()))


def train(tmp_path, hook, **keys):
    recorder = Recorder()
    return trained(tmp_path, hooks=[hook, recorder], **keys), recorder


def means(states):
    return {
        name: torch.stack([state[name] for state in states]).double().mean(0)
        for name, value in states[0].items() if value.is_floating_point()
    }


def assert_close(state, expected):
    for name, value in expected.items():
        torch.testing.assert_close(state[name].double(), value.double(),
                                   rtol=1e-5, atol=1e-7, msg=name)


LATE_EPOCHS = dict(type='mmpsw.EpochAverageHook', begin=0.5,
                   ema_type='StochasticWeightAverage', update_buffers=True)
LAST_EPOCHS = dict(type='mmpsw.EpochAverageHook', last=2,
                   ema_type='mmpsw.LatestWeightAverage')


@pytest.mark.parametrize('hook, first', [
    # Half of the training is two epochs: the second end is the first sample.
    (LATE_EPOCHS, (0, 1, 1, 1)),
    (LAST_EPOCHS, (0, 0, 1, 2)),
])
@pytest.mark.parametrize('sampler, train_cfg', [
    ('DefaultSampler', dict(by_epoch=True, max_epochs=4)),
    ('InfiniteSampler', dict(by_epoch=False, max_iters=24, val_interval=6)),
])
def test_swa_and_lawa_are_means_of_epoch_ends(tmp_path, hook, first, sampler,
                                              train_cfg):
    runner, seen = train(tmp_path, hook, train_cfg=train_cfg, sampler=sampler)
    ends = seen.after[EPOCH - 1::EPOCH]
    for last, (shown, begin) in enumerate(zip(seen.shown, first, strict=True)):
        assert_close(shown, means(ends[begin:last + 1]))
    assert_close(runner.model.state_dict(), ends[-1])


def test_nothing_that_is_only_evaluated_changes_the_training(tmp_path):
    plain, _ = train(tmp_path / 'a', Hook())
    for i, arm in enumerate((
            dict(type='EMAHook', momentum=0.02, update_buffers=True),
            LAST_EPOCHS, LATE_EPOCHS)):
        other, _ = train(tmp_path / str(i), arm)
        assert_equal(plain.model, other.model)


def test_switch_ema_trains_on_from_the_average(tmp_path):
    """theta_ema <- (1 - m) theta_ema + m theta; each epoch theta <- theta_ema.

    (Li et al. 2024, algorithm 1, with mmengine's name for the rate.)
    """
    hook = dict(type='mmpsw.SwitchEMAHook', momentum=EMA, update_buffers=True)
    runner, seen = train(tmp_path, hook)
    average = None
    for i, live in enumerate(seen.after):
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
    for i, (fast, after) in enumerate(zip(seen.after, ends), start=1):
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


class Initialised(Toy):
    """Its weights are set after the hooks' before_run, as a zoo's are."""

    def init_weights(self):
        for param in self.parameters():
            torch.nn.init.constant_(param, 100.)


@pytest.mark.parametrize('hook', [
    dict(type='mmpsw.LookaheadHook', k=2),
    dict(type='mmpsw.SwitchEMAHook', momentum=EMA), LATE_EPOCHS, LAST_EPOCHS])
def test_averages_begin_with_the_initialised_weights(tmp_path, hook):
    """Which is seen where nothing is learned: all is what it was."""
    run, seen = train(
        tmp_path, hook, model=Initialised(),
        optimizer=dict(type='SGD', lr=0.), train_cfg=dict(
            by_epoch=False, max_iters=8, val_interval=4))
    average = next(h for h in run.hooks if isinstance(h, EMAHook)).ema_model
    for model in (run.model, average.module):
        assert all((w == 100).all() for w in model.parameters())
    for state in seen.starts + seen.shown:
        assert (state['net.0.weight'] == 100).all()


def test_before_the_first_epoch_end_a_resumed_run_shows_the_same(tmp_path):
    """The first weights, although the live ones are others by then."""
    keys = dict(train_cfg=dict(by_epoch=False, max_iters=8, val_interval=4))
    _, whole = train(tmp_path / 'whole', LATE_EPOCHS, **keys)
    _, resumed = train(tmp_path / 'rest', LATE_EPOCHS, **keys,
                       resume_from=tmp_path / 'whole/iter_3.pth')
    assert_equal(whole.starts[0], whole.shown[0])
    assert_equal(whole.starts[0], resumed.shown[0])


FREE = dict(type='mmpsw.ScheduleFreeHook', recalibrate_batches=2)


def schedule_free(tmp_path, **keys):
    pytest.importorskip('schedulefree')
    return train(tmp_path, FREE, optimizer=dict(
        type='mmpsw.SGDScheduleFree', lr=0.3, momentum=BETA), **keys)


def test_schedule_free_validates_its_average(tmp_path):
    """y = (1 - beta) z + beta x; z <- z - lr g(y); x the mean of the z.

    (Defazio et al. 2024, equations 1 to 3. The first step's x is its z.)
    """
    runner, seen = schedule_free(tmp_path)
    y = [{name: state[name].double() for name, _ in
          runner.model.named_parameters()}
         for state in [*seen.starts, runner.model.state_dict()]]
    x, z = y[0], y[0]
    for i, after in enumerate(y[1:], start=1):
        # y is what is seen, and tells z and so x.
        z = {n: (after[n] - BETA * (1 - 1 / i) * x[n]) /
             (1 - BETA + BETA / i) for n in after}
        x = {n: x[n] + (z[n] - x[n]) / i for n in x}
        if i % EPOCH == 0:
            shown = seen.shown[i // EPOCH - 1]
            for name in x:
                torch.testing.assert_close(shown[name].double(), x[name],
                                           rtol=1e-3, atol=1e-5)
    for name, live in runner.optim_wrapper.optimizer.state.items():
        assert not torch.equal(live['z'], name)


def test_schedule_free_resumes_and_saves_what_is_validated(tmp_path):
    once = dict(interval=1)
    whole, seen = schedule_free(tmp_path / 'whole', checkpoint=once)
    resumed, _ = schedule_free(
        tmp_path / 'rest', checkpoint=once,
        resume_from=tmp_path / 'whole/epoch_2.pth')
    assert_equal(whole.model, resumed.model)
    saved = torch.load(tmp_path / 'whole/epoch_2.pth', weights_only=False)
    for name, value in seen.shown[1].items():
        torch.testing.assert_close(saved['state_dict'][name], value.cpu())


@pytest.mark.parametrize('train_cfg', [
    dict(by_epoch=True, max_epochs=3),
    dict(by_epoch=False, max_iters=18, val_interval=6)])
def test_schedule_free_saves_the_best_as_it_was_validated(
        tmp_path, train_cfg):
    unit = dict(by_epoch=False, interval=6) if 'max_iters' in train_cfg else (
        dict(interval=1))
    run, seen = schedule_free(
        tmp_path, train_cfg=train_cfg,
        checkpoint=dict(save_best='error', rule='less', **unit))
    paths = [*tmp_path.glob('best*.pth'),
             *tmp_path.glob('[ei]*_[0-9]*.pth')]
    assert len(paths) == 4
    for path in paths:
        number = int(path.stem.rpartition('_')[2])
        shown = seen.shown[number // unit['interval'] - 1]
        saved = torch.load(path, weights_only=False)['state_dict']
        for name, value in shown.items():
            assert torch.equal(saved[name], value.cpu()), (path, name)


def test_schedule_free_is_validated_alone_and_resumed_by_hand(tmp_path):
    whole, _ = schedule_free(tmp_path / 'whole', checkpoint=dict(interval=1))
    path = str(tmp_path / 'whole/epoch_2.pth')
    settings = dict(hooks=[dict(FREE)], optimizer=dict(
        type='mmpsw.SGDScheduleFree', lr=0.3, momentum=BETA))
    alone = runner(tmp_path / 'alone', **settings, load_from=path)
    alone.val()
    assert_equal_state(alone.model, torch.load(
        path, weights_only=False)['state_dict'])
    rest = runner(tmp_path / 'rest', **settings,
                  checkpoint=dict(interval=-1))
    rest.resume(path)
    rest.train()
    assert_equal(whole.model, rest.model)
    trained(tmp_path / 'stock')
    with pytest.raises(ValueError, match='saved without it'):
        trained(tmp_path / 'from', **settings,
                resume_from=tmp_path / 'stock/iter_6.pth')


def assert_equal_state(model, state):
    for name, value in model.state_dict().items():
        assert torch.equal(value.cpu(), state[name]), name


def test_schedule_free_is_refused_in_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr('mmpsw.engine.peers.get_world_size', lambda: 2)
    with pytest.raises(ValueError, match='needs a single process'):
        schedule_free(tmp_path)


@pytest.mark.parametrize('hook', [
    dict(type='mmpsw.LookaheadHook', k=4, alpha=0.3),
    dict(type='mmpsw.SwitchEMAHook', momentum=EMA, update_buffers=True),
    LAST_EPOCHS,
    dict(LATE_EPOCHS, begin=0.25),
])
def test_resumed_peers_end_as_uninterrupted_ones(tmp_path, hook):
    whole, _ = train(tmp_path / 'whole', hook,
                     checkpoint=dict(interval=1))
    resumed, _ = train(tmp_path / 'rest', hook, checkpoint=dict(interval=1),
                       resume_from=tmp_path / 'whole/epoch_2.pth')
    expected, found = (torch.load(tmp_path / name / 'epoch_4.pth')
                       for name in ('whole', 'rest'))
    assert_equal(expected['state_dict'], found['state_dict'])
    assert_equal(whole.model, resumed.model)


def epochs(count):
    return dict(train_cfg=dict(by_epoch=True, max_epochs=count))


SWA = dict(LATE_EPOCHS, begin=0.75)


@pytest.mark.parametrize('beside', [False, True])
def test_swa_that_is_resumed_to_twice_the_length(tmp_path, beside):
    """The mean of the last three epoch ends of 8, as without interruption."""
    hook = dict(SWA) if not beside else dict(
        type='mmpsw.RideAlongHook', averages=dict(swa=dict(
            custom_hooks=[SWA])), folders=dict(swa=str(tmp_path / 'swa')))
    ends = []

    class Ends(Hook):
        def after_train_epoch(self, runner):
            ends.append(copy.deepcopy(runner.model.state_dict()))

    trained(tmp_path / 'four', hooks=[hook, Ends()], **epochs(4),
            checkpoint=dict(interval=1))
    trained(tmp_path / 'eight', hooks=[hook, Ends()], **epochs(8),
            checkpoint=dict(interval=1),
            resume_from=tmp_path / 'four/epoch_4.pth')
    folder = tmp_path / ('swa' if beside else 'eight')
    saved = torch.load(folder / 'epoch_8.pth', weights_only=False)
    assert len(ends) == 8
    assert_close(saved['state_dict'], means(ends[5:]))
    with pytest.raises(ValueError, match='average begins with epoch 6, and in '
                       'a run of this length with epoch 7'):
        trained(tmp_path / 'nine', hooks=[hook], **epochs(9),
                resume_from=tmp_path / 'eight/epoch_8.pth')


@pytest.mark.parametrize('hook, message', [
    (dict(type='mmpsw.EpochAverageHook', begin=1), 'begin=1'),
    (dict(type='mmpsw.EpochAverageHook',
          ema_type='mmpsw.LatestWeightAverage', last=0), 'last=0'),
])
def test_bad_settings_are_refused(tmp_path, hook, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, hook)

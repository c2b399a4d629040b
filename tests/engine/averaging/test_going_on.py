"""Runs that go on: resumed, with another epoch, in a notebook."""
import json
import random

import pytest
import torch
from mmengine.hooks import Hook, LoggerHook
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper, OptimWrapperDict
from reference import assert_equal
from torch import nn
from toy import Points, Toy, TwoOptimizers, Weights, runner, trained

from mmpsw.engine import PSWOptimWrapper

PSW = dict(type='PSWA', write_back=False)
COSINE = dict(type='CosineAnnealingLR', T_max=4, end=4, by_epoch=True,
              convert_to_iter_based=True)


def saved(path):
    return torch.load(path, weights_only=False)


def assert_means_of_epochs(folder, seen, epochs, length):
    key = 'net.0.weight'
    for epoch in range(1, epochs + 1):
        state = saved(folder / f'epoch_{epoch}.pth')['state_dict']
        mean = torch.stack([after[key] for after in seen.after[
            length * (epoch - 1):length * epoch]]).mean(0)
        torch.testing.assert_close(state[key], mean)


class Rates(Hook):

    def __init__(self):
        self.rates = []

    def before_train_iter(self, runner, *args, **kwargs):
        self.rates += runner.optim_wrapper.get_lr().get(
            'lr', runner.optim_wrapper.get_lr().get('body.lr'))


@pytest.mark.parametrize('before, after', [(4, 8), (8, 4)])
@pytest.mark.parametrize('hook', ['mmpsw.RandomStateHook', None])
@pytest.mark.parametrize('two', [False, True])
def test_a_schedule_goes_on_in_epochs_of_another_length(
        tmp_path, before, after, hook, two):
    """As in a run that had these from its beginning."""
    def rates(name, batch_size, **keys):
        seen = Rates()
        model = TwoOptimizers() if two else Toy()
        run = runner(tmp_path / name, PSW, model=model, validate=False,
                     hooks=[dict(type=hook), seen] if hook else [seen],
                     batch_size=batch_size, param_scheduler=[COSINE], **keys)
        if two:
            run.optim_wrapper = OptimWrapperDict(
                body=PSWOptimWrapper(torch.optim.SGD(
                    model.net[:2].parameters(), lr=0.05), PSW),
                head=OptimWrapper(torch.optim.SGD(
                    model.net[2:].parameters(), lr=0.05)))
        run.train()
        return seen.rates

    rates('before', before, checkpoint=dict(interval=1))
    whole = rates('whole', after)
    rest = rates('rest', after, resume_from=tmp_path / 'before/epoch_2.pth')
    assert rest == pytest.approx(whole[len(whole) // 2:])


def test_a_second_runner_averages_its_own_run(tmp_path):
    """It has the first one's model and wrapper, and other epochs."""
    model = Toy()
    wrapper = PSWOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), psw=PSW)
    for name, epochs, batch_size in (('a', 2, 4), ('b', 5, 8)):
        seen = Weights()
        run = runner(tmp_path / name, PSW, model=model, hooks=[seen],
                     batch_size=batch_size, checkpoint=dict(interval=1),
                     train_cfg=dict(by_epoch=True, max_epochs=epochs))
        run.optim_wrapper = wrapper
        run.train()
    assert_means_of_epochs(tmp_path / 'b', seen, epochs=5, length=3)


def test_a_runner_that_trains_for_longer(tmp_path):
    seen = Weights()
    run = trained(tmp_path, PSW, dict(by_epoch=True, max_epochs=2),
                  hooks=[seen], checkpoint=dict(interval=1))
    run.train_loop._max_epochs, run.train_loop._max_iters = 4, 24
    run.train()
    assert_means_of_epochs(tmp_path, seen, epochs=4, length=6)


class Drops(Toy):

    def forward(self, x, y, mode='tensor'):
        return super().forward(x * random.random() + torch.rand(()), y, mode)


def test_a_runner_that_is_told_to_resume_draws_the_same(tmp_path):
    def made(name, **keys):
        return runner(tmp_path / name, PSW, model=Drops(), validate=False,
                      hooks=[dict(type='mmpsw.RandomStateHook')], **keys)

    whole = made('whole')
    whole.train()
    rest = made('rest', checkpoint=dict(interval=-1))
    rest.resume(str(tmp_path / 'whole/iter_9.pth'))
    rest.train()
    assert_equal(whole.model, rest.model)


def test_logs_tell_the_place_in_the_epoch(tmp_path):
    def lines(name, **keys):
        run = runner(tmp_path / name, PSW, validate=False, **keys)
        logger = next(hook for hook in run.hooks
                      if isinstance(hook, LoggerHook))
        logger.interval = 2
        run.train()
        [log] = (tmp_path / name).glob('*/vis_data/scalars.json')
        return [(line['iter'], line['epoch'], line['loss']) for line in map(
            json.loads, log.read_text().splitlines())]

    whole, rest = lines('whole'), lines(
        'rest', resume_from=tmp_path / 'whole/iter_9.pth')
    assert [line[:2] for line in rest] == [
        line[:2] for line in whole if line[0] > 9]


# Recalibrating


class Two(TwoOptimizers):
    """The head's batch norm is behind the body's layer."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8),
            nn.Linear(8, 1))


@pytest.mark.parametrize('order', ['body head', 'head body'])
@pytest.mark.parametrize('write_back', [True, False])
def test_statistics_are_of_all_weights_that_are_saved(
        tmp_path, order, write_back):
    model = Two()
    parts = dict(body=model.net[:2], head=model.net[2:])
    run = runner(tmp_path, PSW, dict(by_epoch=True, max_epochs=2),
                 model=model, validate=False, checkpoint=dict(interval=1))
    psw = dict(type='PSWA', buffers='recalibrate', write_back=write_back)
    run.optim_wrapper = OptimWrapperDict(**{
        name: PSWOptimWrapper(
            torch.optim.SGD(parts[name].parameters(), lr=0.1), psw)
        for name in order.split()})
    run.train()
    state = saved(tmp_path / 'epoch_2.pth')['state_dict']
    of_these = Two()
    of_these.load_state_dict(state)
    # The batches of the second resampling.
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        means = [of_these.net[:3](Points().x[part]).mean(0)
                 for part in order.split(4)]
    torch.testing.assert_close(state['net.3.running_mean'].cpu(),
                               torch.stack(means).mean(0))


class Byol(Toy):
    """A target network follows in the loss."""

    def __init__(self):
        super().__init__()
        self.target = ExponentialMovingAverage(self.net, momentum=0.05)

    def forward(self, x, y, mode='tensor'):
        if mode == 'loss':
            self.target.update_parameters(self.net)
        return super().forward(x, y, mode)


def test_recalibrating_leaves_a_target_network(tmp_path):
    stock, run = (
        trained(tmp_path / name, psw, model=Byol(), validate=False,
                checkpoint=dict(interval=-1))
        for name, psw in (('stock', None),
                          ('psw', dict(PSW, buffers='recalibrate'))))
    assert_equal(stock.model.target, run.model.target)


# What is said


class Half(Toy):
    """Is saved in half precision."""

    def __init__(self):
        super().__init__()
        self._register_state_dict_hook(lambda module, state, *_: state.update(
            {key: value.half() for key, value in state.items()
             if value.is_floating_point()}))


def test_a_model_that_converts_what_it_saves_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"makes another tensor of 'net\.0\."):
        trained(tmp_path, PSW, model=Half())
    trained(tmp_path, dict(type='PSWA'), model=Half())


def test_a_validation_before_the_window_is_said(tmp_path):
    trained(tmp_path, dict(type='PWALKS', last=0.25, period=4,
                           evaluate='average'))
    [log] = tmp_path.glob('*/*.log')
    assert 'what is validated and saved is the live weights; before its ' in (
        log.read_text())

"""What is validated, saved and continued, in models and runs of all kinds."""
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from toy import (
    Error,
    Points,
    Toy,
    TwoOptimizers,
    Weights,
    here,
    runner,
    trained,
)

from mmpsw.engine import PSWOptimWrapper
from mmpsw.engine.averaging.parts import weights_of
from mmpsw.methods.averaging import PSWA, PeriodicResampler, running_statistics

PSW = dict(type='PSWA', write_back=False)
TWO = dict(train_cfg=dict(by_epoch=True, max_epochs=2))
VAL = dict(batch_size=4, num_workers=0,
           collate_fn=dict(type='default_collate'),
           sampler=dict(type='DefaultSampler', shuffle=False),
           dataset=Points())


def loaded(path):
    return torch.load(path, weights_only=False)


class Shared(Toy):
    """Its batch norm is reached by two names."""

    def __init__(self):
        super().__init__()
        self.alias = self.net[1]


class Prefixed(Toy):
    """Saved without ``net.``, as mmpretrain's TimmClassifier."""

    def __init__(self):
        super().__init__()
        self._register_state_dict_hook(self.shorten)
        self.register_load_state_dict_pre_hook(self.lengthen)

    @staticmethod
    def shorten(module, state, prefix, meta):
        for key in list(state):
            if key.startswith('net.'):
                state[key.removeprefix('net.')] = state.pop(key)
        return state

    @staticmethod
    def lengthen(module, state, *_):
        for key in list(state):
            if not key.startswith(('net.', 'data_pre')):
                state[f'net.{key}'] = state.pop(key)


class Validated(Hook):
    priority = 'LOW'

    def before_val_iter(self, runner, *args, **kwargs):
        self.state = {key: value.clone().cpu() for key, value
                      in runner.model.state_dict().items()}


@pytest.mark.parametrize('kind', [Toy, Shared, Prefixed])
def test_what_was_validated_is_saved_by_whatever_name(tmp_path, kind):
    """Batch norm's statistics were the live ones beside averaged weights."""
    seen, live = Validated(), Weights()
    run = trained(tmp_path, PSW, model=kind(), hooks=[seen, live],
                  checkpoint=dict(interval=1), **TWO)
    path = tmp_path / 'epoch_2.pth'
    checkpoint = loaded(path)
    for key, value in seen.state.items():
        assert torch.equal(checkpoint['state_dict'][key], value), key
    moving = [key for key in seen.state if 'running' in key or '0.w' in key]
    assert len(moving) >= 3
    for key in moving:
        mean = torch.stack([state[key] for state in live.after[6:]]).mean(0)
        torch.testing.assert_close(seen.state[key], mean.cpu())
        assert torch.equal(checkpoint['live_state_dict'][key],
                           live.after[-1][key].cpu())
    # By the same names, for whoever takes a part of it.
    part = weights_of(str(path), checkpoint, 'previous')
    if kind is not Shared:
        assert all(torch.equal(part[key], seen.state[key]) for key in moving)
    first = Weights()
    resumed = runner(tmp_path, PSW, model=kind(), hooks=[first],
                     resume_from=path, validate=False)
    resumed.train()
    straight = Weights()
    trained(tmp_path / 'straight', PSW, model=kind(), hooks=[straight],
            checkpoint=dict(interval=-1), validate=False)
    assert len(first.after) == 12
    for key, value in first.after[0].items():
        assert torch.equal(value, straight.after[12][key]), key
    assert run.model is not resumed.model


def test_a_group_that_was_added_is_saved_as_the_mean(tmp_path):

    class Late(Toy):

        def __init__(self):
            super().__init__()
            self.late = nn.Linear(1, 1)

        def forward(self, x, y, mode='tensor'):
            out = self.late(self.net(x))
            if mode == 'loss':
                return dict(loss=(out - y).square().mean())
            return [(out, y)] if mode == 'predict' else out

    class Add(Hook):

        def before_train(self, runner):
            optimizer = runner.optim_wrapper.optimizer
            kept = optimizer.param_groups[0]['params']
            self.late = [p for p in kept
                         if any(p is q for q in
                                runner.model.late.parameters())]
            optimizer.param_groups[0]['params'] = [
                p for p in kept if not any(p is q for q in self.late)]

        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                runner.optim_wrapper.optimizer.add_param_group(
                    dict(params=self.late))

    live = Weights()
    trained(tmp_path, PSW, model=Late(), hooks=[Add(), live],
            checkpoint=dict(interval=1), **TWO)
    saved = loaded(tmp_path / 'epoch_2.pth')['state_dict']['late.weight']
    values = torch.stack([state['late.weight'] for state in live.after[6:]])
    assert not torch.equal(values[0], values[-1])
    torch.testing.assert_close(saved, values.mean(0).cpu())


class Alternating(Toy):
    """Each part is frozen while the other is updated, as in a pix2pix."""

    def train_step(self, data, optim_wrapper):
        for part in (True, False):
            self.net[3].requires_grad_(part)
            self.net[0].requires_grad_(not part)
            loss = self(*map(here, data), mode='loss')['loss']
            optim_wrapper.update_params(loss)
        return dict(loss=loss)


def test_what_a_model_freezes_within_an_iteration_is_averaged(tmp_path):
    live = Weights()
    trained(tmp_path, PSW, model=Alternating(), hooks=[live],
            checkpoint=dict(interval=1), validate=False, **TWO)
    saved = loaded(tmp_path / 'epoch_2.pth')['state_dict']
    for key in ('net.0.weight', 'net.3.weight', 'net.1.running_mean'):
        mean = torch.stack([state[key] for state in live.after[6:]]).mean(0)
        torch.testing.assert_close(saved[key], mean.cpu())
        assert not torch.equal(saved[key], live.after[-1][key].cpu())


class Both(TwoOptimizers):
    """Two networks, of an optimizer each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.other = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

    def forward(self, x, y, mode='tensor'):
        losses = super().forward(x, y, mode)
        losses['loss'] += (self.other(x) - y).square().mean()
        return losses


def two_optimizers(tmp_path, model, wrappers, hooks, **keys):
    run = runner(tmp_path, model=model, hooks=hooks, **TWO, **keys)
    run.optim_wrapper = OptimWrapperDict(**wrappers)
    run.train()


def sgd(params, psw=None):
    optimizer = torch.optim.SGD(params, lr=0.02)
    return (PSWOptimWrapper(optimizer, psw=psw) if psw
            else OptimWrapper(optimizer))


@pytest.mark.parametrize('buffers', ['average', 'recalibrate'])
def test_another_optimizers_statistics_stay_its_own(tmp_path, buffers):
    seen = []
    for psw in (None, dict(PSW, buffers=buffers)):
        model, live = Both(), Weights()
        two_optimizers(
            tmp_path / str(psw is None), model,
            dict(a=sgd(model.net.parameters(), psw),
                 b=sgd(model.other.parameters())),
            [live, *([dict(type='mmpsw.PSWHook')] if psw else [])],
            validate=False)
        seen.append(live.after)
    for stock, state in zip(*seen):
        for key in stock:
            assert torch.equal(state[key], stock[key]), key


def test_a_parameter_of_two_optimizers_comes_back_live(tmp_path):

    class Look(Hook):
        priority = 'VERY_HIGH'

        def __init__(self):
            self.before, self.after = [], []

        def before_val(self, runner):
            self.before.append(runner.model.net[0].weight.detach().clone())

        def after_val(self, runner):
            self.after.append(runner.model.net[0].weight.detach().clone())

    class Turns(Toy):

        def train_step(self, data, optim_wrapper):
            for wrapper in optim_wrapper.values():
                loss = self(*map(here, data), mode='loss')['loss']
                wrapper.update_params(loss)
            return dict(loss=loss)

    model, look = Turns(), Look()
    net = model.net
    two_optimizers(
        tmp_path, model,
        dict(a=sgd([*net[0].parameters(), *net[1].parameters()], PSW),
             b=sgd([*net[0].parameters(), *net[3].parameters()], PSW)),
        [dict(type='mmpsw.PSWHook'), look])
    assert len(look.after) == 2
    for before, after in zip(look.before, look.after):
        assert torch.equal(before, after)


def test_what_is_loaded_after_a_training_is_what_is_tested(tmp_path):

    class Tested(Hook):
        priority = 'LOW'

        def before_test_iter(self, runner, *args, **kwargs):
            self.weight = runner.model.net[0].weight.detach().clone().cpu()

    tested = Tested()
    run = runner(tmp_path, PSW, hooks=[tested], checkpoint=dict(interval=1),
                 test_dataloader=VAL, test_cfg=dict(),
                 test_evaluator=Evaluator(Error()))
    run.train()
    saved = [loaded(tmp_path / f'epoch_{epoch}.pth')['state_dict'][
        'net.0.weight'] for epoch in (1, 4)]
    run.test()
    assert torch.equal(tested.weight, saved[1])
    run.load_checkpoint(str(tmp_path / 'epoch_1.pth'))
    run.test()
    assert torch.equal(tested.weight, saved[0])


def test_hooks_prepare_a_validation_with_the_average(tmp_path):
    """mmpretrain's PrepareProtoBeforeValLoopHook: the gallery's features."""

    class Gallery(Hook):

        def before_val(self, runner):
            self.weight = runner.model.net[0].weight.detach().clone()

        def after_val_iter(self, runner, *args, **kwargs):
            assert torch.equal(self.weight, runner.model.net[0].weight)

    gallery = Gallery()
    run = trained(tmp_path, PSW, hooks=[gallery], **TWO)
    assert not torch.equal(gallery.weight, run.model.net[0].weight)


@pytest.mark.parametrize('more', [[], [dict(type='mmpsw.RandomStateHook')]])
def test_a_run_with_an_ema_goes_on_from_its_live_weights(
        tmp_path, more, caplog):
    live, then = Weights(), Weights()
    trained(tmp_path, hooks=[dict(type='EMAHook', momentum=0.05), live],
            checkpoint=dict(interval=1), **TWO)
    path = tmp_path / 'epoch_2.pth'
    assert not torch.equal(loaded(path)['state_dict']['net.0.weight'],
                           live.after[-1]['net.0.weight'].cpu())
    trained(tmp_path / 'then', PSW, hooks=[*more, then], resume_from=path)
    straight = Weights()
    trained(tmp_path / 'straight', hooks=[straight],
            checkpoint=dict(interval=-1))
    for key, value in then.after[0].items():
        assert torch.equal(value, straight.after[12][key]), key


def test_two_hooks_are_refused(tmp_path):
    with pytest.raises(ValueError, match='two PSWHooks.*leave one'):
        trained(tmp_path, PSW, hooks=[dict(type='mmpsw.PSWHook')])


def test_a_last_period_of_one_iteration_is_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmpsw.engine.averaging.hook.warn', said.append)
    for iterations in (24, 25, 30):
        trained(tmp_path, dict(PSW, period=12, by_epoch=False),
                sampler='InfiniteSampler', train_cfg=dict(
                    by_epoch=False, max_iters=iterations))
    assert [text for text in said if 'is cut to 1 of 12' in text] == said
    assert len(said) == 1


def test_a_loader_that_is_not_torchs(tmp_path):

    class Loader:
        dataset = Points()

        def __len__(self):
            return 6

        def __iter__(self):
            for start in range(0, 24, 4):
                yield tuple(torch.stack(part) for part in zip(
                    *(self.dataset[start + i] for i in range(4))))

    live = Weights()
    run = trained(tmp_path, PSW, hooks=[live], loader=Loader(),
                  validate=False, checkpoint=dict(interval=1), **TWO)
    mean = torch.stack([state['net.0.weight']
                        for state in live.after[6:]]).mean(0)
    torch.testing.assert_close(loaded(tmp_path / 'epoch_2.pth')['state_dict'][
        'net.0.weight'], mean.cpu())
    assert run.iter == 12


def test_a_validation_alone_after_a_look_at_the_loader(tmp_path):
    run = runner(tmp_path, PSW)
    assert len(run.train_dataloader) == 6
    run.val()


def test_statistics_that_no_mean_is_made_of():
    class Counts(nn.Module):

        def __init__(self):
            super().__init__()
            for name in ('running_mean', 'running_var'):
                self.register_buffer(name, torch.zeros(2, dtype=torch.int64))

    model = nn.Sequential(nn.Linear(2, 2), Counts(), nn.BatchNorm1d(2),
                          nn.LazyBatchNorm1d(affine=False))
    assert list(running_statistics(model)) == [
        '2.running_mean', '2.running_var']
    with torch.device('meta'):
        empty = nn.Linear(2, 2)
    with pytest.raises(ValueError, match='not initialised yet'):
        PeriodicResampler(torch.optim.SGD(empty.parameters(), lr=0.1),
                          PSWA(), period=2)

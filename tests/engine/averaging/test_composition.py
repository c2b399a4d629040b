"""PSW beside what a training may also have; tests/README.md has a table."""
import copy
import io
import itertools
import warnings

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from reference import Reference, assert_equal
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.data import default_collate
from toy import After, Points, Toy, assert_statistics, here, trained

from mmpsw.methods.averaging import PSWA, PSWM, PeriodicResampler


class Witness(Hook):
    """Checks, after each iteration, what is in the model.

    The mean is computed from the definition, of all that was in the model
    after the optimizer's updates: of the model's own tensors, whichever these
    are now.
    """

    priority = 'ABOVE_NORMAL'  # behind PSWHook, which comes first in the list

    def __init__(self, updates=6, left_out=()):
        self.reference = Reference(updates, updates)
        self.left_out = left_out
        self.resamplings = 0

    def before_train(self, runner):
        self.model = runner.model
        runner.optim_wrapper.optimizer.register_step_post_hook(self.look)

    def tensors(self):
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return [tensor for name, tensor in named
                if tensor.is_floating_point() and name not in self.left_out]

    def look(self, *args):
        self.live = [t.detach().clone() for t in self.tensors()]
        self.mean = self.reference.step(self.live)

    def after_train_iter(self, runner, *args, **kwargs):
        expected = self.live
        if self.mean is not None:
            self.resamplings += 1
            expected = [m.to(w.dtype) for m, w in zip(self.mean, self.live)]
        for tensor, value in zip(self.tensors(), expected, strict=True):
            torch.testing.assert_close(tensor.detach(), value)


def train(work_dir, hooks=(), psw=None, witness=True, **keys):
    """Four epochs of six iterations, watched; validated where asked to."""
    keys.setdefault('validate', False)
    keys.setdefault('checkpoint', dict(interval=-1))
    watching = [Witness()] if witness is True else [witness] * bool(witness)
    weights = After()
    run = trained(work_dir, psw or dict(type='PSWA'),
                  hooks=[*hooks, *watching, weights], **keys)
    assert all(w.resamplings == run.iter // 6 for w in watching)
    run.after = weights.after
    return run


# Hooks of mmengine


@pytest.mark.parametrize('update_buffers', [False, True])
def test_ema(tmp_path, update_buffers):
    """It averages what is written back, and does not disturb the training."""
    ema = dict(type='EMAHook', momentum=0.25, update_buffers=update_buffers)
    plain = train(tmp_path / 'plain')
    run = train(tmp_path / 'ema', [copy.deepcopy(ema)], validate=True,
                checkpoint=dict(by_epoch=False, interval=1))
    assert_equal(plain.model, run.model)

    def averaged(run):
        hook = next(h for h in run.hooks if isinstance(h, EMAHook))
        return hook.ema_model.module.state_dict()

    key = 'net.1.running_mean' if update_buffers else 'net.0.weight'
    mean = run.after[0][key].double()
    for state in run.after[1:]:
        mean += 0.25 * (state[key] - mean)
    torch.testing.assert_close(averaged(run)[key].double(), mean)
    for iteration in (6, 9):
        resumed = train(tmp_path / str(iteration), [copy.deepcopy(ema)],
                        witness=False, validate=True, resume_from=tmp_path /
                        f'ema/iter_{iteration}.pth')
        assert_equal(run.model, resumed.model)
        assert_equal(averaged(run), averaged(resumed))


def test_early_stopping(tmp_path):
    """At a period's end the mean stays; inside of one, the live weights."""
    stop = dict(type='EarlyStoppingHook', monitor='error', rule='less',
                min_delta=100., patience=1)
    two = dict(by_epoch=True, max_epochs=2)
    run = train(tmp_path / 'a', [dict(stop)], validate=True)
    assert run.epoch == 2
    assert_equal(run.model, train(tmp_path / 'b', train_cfg=two).model)
    inside = train(tmp_path / 'c', [dict(stop)], dict(type='PSWA', period=4),
                   witness=False, validate=True)
    stock = trained(tmp_path / 'd', train_cfg=two, validate=False)
    assert inside.epoch == 2
    assert_equal(inside.model, stock.model)


def test_activation_checkpointing(tmp_path):
    """Forward passes happen twice, and updates once."""
    plain = train(tmp_path / 'plain')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # mmengine names no use_reentrant
        run = train(tmp_path / 'run',
                    cfg=dict(activation_checkpointing=['net.1', 'net.3']))
    for a, b in zip(plain.model.parameters(), run.model.parameters()):
        assert torch.equal(a, b)
    # Batch norm's statistics are updated twice, with and without PSW.
    assert run.model.net[1].num_batches_tracked == 2 * 24


def test_the_runner_compiles(tmp_path):
    """mmengine compiles ``train_step``; the sampling is outside of it."""
    two = dict(by_epoch=True, max_epochs=2)
    plain = train(tmp_path / 'plain', train_cfg=dict(two))
    run = train(tmp_path / 'run', train_cfg=two,
                cfg=dict(compile=dict(backend='eager')))
    assert run.optim_wrapper.resampler.resamplings == 2
    for a, b in zip(plain.model.parameters(), run.model.parameters()):
        torch.testing.assert_close(a, b)


class SwitchPoints(Points):
    """What mmdet's and mmpretrain's hooks ask of a data set."""

    def __init__(self):
        super().__init__()
        self.pipeline = None
        self.skipped = ()

    def update_skip_type_keys(self, keys):
        self.skipped = keys

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        scale = 1 if self.pipeline is None else self.pipeline({})['scale']
        return x * scale + 0.25 * bool(self.skipped), y


class Scale:
    """A pipeline's transform."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, results):
        return dict(scale=self.scale)


class Switched(Toy):
    """What mmdet's and mmpretrain's hooks ask of a model."""

    def __init__(self):
        super().__init__()
        self.bbox_head = nn.Identity()
        self.bbox_head.use_l1 = False
        self.loss_module = nn.MSELoss()
        self.seen = []

    def forward(self, x, y, mode='tensor'):
        if mode != 'loss':
            return super().forward(x, y, mode)
        out = self.net(x)
        self.seen.append((self.bbox_head.use_l1, type(self.loss_module),
                          x.abs().max().item()))
        loss = self.loss_module(out, y)
        return dict(loss=loss + self.bbox_head.use_l1 * (out - y).abs().mean())


def switching(kind):
    """A hook that switches before the third of four epochs."""
    mmdet = pytest.importorskip('mmdet.engine.hooks')
    mmpretrain = pytest.importorskip('mmpretrain.engine.hooks')
    if kind == 'YOLOXModeSwitchHook':
        return mmdet.YOLOXModeSwitchHook(num_last_epochs=1)
    if kind == 'PipelineSwitchHook':
        return mmdet.PipelineSwitchHook(2, [Scale(2.)])
    return mmpretrain.SwitchRecipeHook([
        dict(action_epoch=3, train_pipeline=[Scale(3.)], loss=nn.L1Loss())
    ])


@pytest.mark.parametrize('kind', [
    'YOLOXModeSwitchHook', 'PipelineSwitchHook', 'SwitchRecipeHook'])
def test_mode_switches(tmp_path, kind):
    """Data and loss change between two periods, also when resumed."""

    def run(name, **keys):
        return train(tmp_path / name, [switching(kind)], model=Switched(),
                     dataset=SwitchPoints(), **keys)

    whole = run('whole', checkpoint=dict(by_epoch=False, interval=1))
    seen = whole.model.seen
    modes = [mode for mode, _ in itertools.groupby(s[:2] for s in seen)]
    largest = [max(s[2] for s in seen[i:i + 6]) for i in (6, 12)]
    expected, scale = {
        'YOLOXModeSwitchHook': ([(False, nn.MSELoss), (True, nn.MSELoss)], 1),
        'PipelineSwitchHook': ([(False, nn.MSELoss)], 2),
        'SwitchRecipeHook': ([(False, nn.MSELoss), (False, nn.L1Loss)], 3),
    }[kind]
    assert len(seen) == 24 and modes == expected
    assert largest[1] / largest[0] == pytest.approx(scale, abs=0.2)
    for iteration in (11, 14):
        resumed = run(str(iteration), witness=False,
                      resume_from=tmp_path / f'whole/iter_{iteration}.pth')
        assert resumed.model.seen == seen[iteration:]
        assert_equal(whole.model, resumed.model)


class Named(Toy):
    """Takes its batch as a dict, as mmpretrain's models do."""

    def forward(self, inputs=None, y=None, mode='tensor'):
        return super().forward(inputs, y, mode)


def named_batch(items):
    return dict(zip(('inputs', 'y'), default_collate(items)))


@pytest.mark.parametrize('write_back', [True, False])
def test_precise_bn(tmp_path, write_back):
    """The statistics are those of the weights that were written back.

    The hook sets new tensors in the place of the buffers, which have to be
    averaged in the next period all the same.
    """
    hooks = pytest.importorskip('mmpretrain.engine.hooks')
    loader = torch.utils.data.DataLoader(
        Points(), batch_size=4, collate_fn=named_batch)
    run = train(tmp_path, [hooks.PreciseBNHook(num_samples=24)],
                dict(type='PSWA', write_back=write_back), model=Named(),
                loader=loader, witness=write_back, checkpoint=dict(interval=1))
    norm = run.model.net[1]
    assert_statistics(run.model, Points().x.split(4))
    resampler = run.optim_wrapper.resampler
    assert any(norm.running_mean is tensor for tensor in resampler.tensors)
    if not write_back:  # deployed is the average, with its own statistics
        saved = torch.load(tmp_path / 'epoch_4.pth', weights_only=False)
        deployed = saved['state_dict']['net.1.running_mean']
        assert torch.equal(deployed, resampler.average[-2].cpu())
        live = saved['live_state_dict']['net.1.running_mean']
        assert torch.equal(live, norm.running_mean.cpu())


# Models


@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('weight, spectral, direction, length', [
    (weight_norm, spectral_norm, 'net.0.parametrizations.weight.original1',
     'net.0.parametrizations.weight.original0'),
    (nn.utils.weight_norm, nn.utils.spectral_norm, 'net.0.weight_v',
     'net.0.weight_g'),
])
def test_parametrised_modules(tmp_path, weight, spectral, direction, length):
    """The parameters are averaged, and the weight is that of their mean.

    A spectral norm's vectors are left as they are: their mean is shorter.
    """
    model = Toy()
    weight(model.net[0])
    spectral(model.net[3])
    vectors = {name: vector for name, vector in model.named_buffers()
               if name.startswith('net.3')}
    assert len(vectors) == 2
    run = train(tmp_path, model=model, witness=Witness(left_out=vectors))
    model.eval()(*map(here, next(iter(run.train_dataloader))))
    state = model.state_dict()
    v, g = state[direction], state[length]
    torch.testing.assert_close(
        model.net[0].weight, g * v / v.norm(dim=1, keepdim=True))
    for name in vectors:
        assert state[name].norm().item() == pytest.approx(1, abs=1e-5)
    norm = torch.linalg.matrix_norm(model.net[3].weight.detach(), 2)
    assert norm.item() == pytest.approx(1, abs=1e-3)


class Tied(Toy):

    def __init__(self):
        super().__init__()
        self.more = nn.Linear(4, 8)
        self.more.weight = self.net[0].weight


@pytest.mark.parametrize('write_back', [True, False])
def test_tied_parameters(tmp_path, write_back):
    """They stay one, and both names are deployed."""
    run = train(tmp_path, psw=dict(type='PSWA', write_back=write_back),
                model=Tied(), witness=write_back, checkpoint=dict(interval=4))
    assert run.model.more.weight is run.model.net[0].weight
    saved = torch.load(tmp_path / 'epoch_4.pth', weights_only=False)
    deployed = saved['state_dict']
    assert torch.equal(deployed['more.weight'], deployed['net.0.weight'])
    average = run.optim_wrapper.resampler.average
    expected = run.after[-1]['net.0.weight'] if write_back else average[0]
    assert torch.equal(deployed['net.0.weight'], expected.cpu())


def test_a_compiled_model_in_a_loop_of_ones_own():
    """The parameters are the same; given the model itself, so are names."""

    def train(model, resampler, optimizer, steps):
        for step in steps:
            x = here(Points().x[step % 20:][:4])
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            resampler.step()

    def build(compiled):
        plain = here(Toy().net)
        model = torch.compile(plain, backend='eager') if compiled else plain
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        return plain, model, optimizer, PeriodicResampler(
            optimizer, PSWA(), 4, model=plain)

    plain, model, optimizer, resampler = build(True)
    train(model, resampler, optimizer, range(6))
    file = io.BytesIO()
    torch.save((plain.state_dict(), resampler.state_dict()), file)
    train(model, resampler, optimizer, range(6, 12))
    assert resampler.resamplings == 3
    other, model, optimizer, resampler = build(False)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other.load_state_dict(weights)
    resampler.load_state_dict(state)
    train(model, resampler, optimizer, range(6, 12))
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


# What changes while a model trains


class Freeze(Hook):
    """Freezes and unfreezes, between two epochs and inside of them."""

    def before_train_iter(self, runner, *args, **kwargs):
        first, last = runner.model.net[0], runner.model.net[3]
        first.requires_grad_(not 6 <= runner.iter < 12)
        last.requires_grad_(not 15 <= runner.iter < 20)


def test_stages_that_are_frozen_and_unfrozen(tmp_path):
    """Exact when resumed, although no stage is frozen at the loading."""

    def run(name, **keys):
        return train(tmp_path / name, [Freeze()], dict(type='PSWM'),
                     witness=False, **keys)

    whole = run('whole', checkpoint=dict(by_epoch=False, interval=1))
    first, last = ([state[key] for state in whole.after]
                   for key in ('net.0.weight', 'net.3.weight'))
    assert all(torch.equal(first[5], w) for w in first[6:12])
    assert all(torch.equal(last[14], w) for w in last[15:17])
    # It was in the window that had begun: its mean comes at the end of that.
    mean = torch.stack([w.double() for w in last[12:17]] + [last[16].double()])
    assert not torch.equal(last[17], last[16])
    torch.testing.assert_close(last[17].double(), mean.mean(0))
    for iteration in (3, 6, 8, 12, 14, 16, 18, 19, 21):
        resumed = run(str(iteration),
                      resume_from=tmp_path / f'whole/iter_{iteration}.pth')
        assert_equal(whole.model, resumed.model)


def stepping(values, resampler, steps):
    """Weights that grow by one with each update."""
    for _ in range(steps):
        for value in values:
            if value.requires_grad:
                value.data += 1
        resampler.step()
    return [value.item() for value in values]


def scalars(*trainable):
    return [nn.Parameter(torch.zeros(1), requires_grad=t) for t in trainable]


def test_what_is_frozen_inside_of_a_window_by_hand():
    a, b, c = values = scalars(True, True, False)
    resampler = PeriodicResampler(torch.optim.SGD(values, lr=0.), PSWA(), 4)
    stepping(values, resampler, 2)
    b.requires_grad_(False)
    c.requires_grad_(True)
    # a: 1 2 3 4; b: 1 2 2 2, in the window; c: 1 2, not in the window
    assert stepping(values, resampler, 2) == [2.5, 1.75, 2]
    # a: 3.5 4.5 5.5 6.5; b is frozen; c: 3 4 5 6
    assert stepping(values, resampler, 4) == [5, 1.75, 4.5]


def test_parameters_without_a_gradient_keep_every_bit():
    used, unused = nn.Linear(3, 3), nn.Linear(3, 3)
    before = copy.deepcopy(unused)
    optimizer = torch.optim.SGD(
        [*used.parameters(), *unused.parameters()], lr=0.1)
    resampler = PeriodicResampler(optimizer, PSWM(0.3), 7)
    for step in range(21):
        used(torch.full((2, 3), float(step))).sum().backward()
        optimizer.step()
        resampler.step()
    for a, b in zip(unused.parameters(), before.parameters()):
        assert a.grad is None and torch.equal(a, b)


def test_a_group_that_is_added_inside_of_a_period():
    """It is averaged from the next window on, also when resumed."""

    def build(added):
        a, b = values = scalars(True, True)
        optimizer = torch.optim.SGD([a], lr=0.)
        if added:
            optimizer.add_param_group(dict(params=[b]))
        return values, optimizer, PeriodicResampler(optimizer, PSWA(), 4)

    values, optimizer, resampler = build(False)
    stepping(values, resampler, 2)
    optimizer.add_param_group(dict(params=[values[1]]))
    state = copy.deepcopy(resampler.state_dict())
    middle = [value.item() for value in values]
    assert stepping(values, resampler, 2) == [2.5, 4]
    assert stepping(values, resampler, 4) == [5, 6.5]

    others, _, resumed = build(True)
    resumed.load_state_dict(state)
    for value, saved in zip(others, middle):
        value.data.fill_(saved)
    assert stepping(others, resumed, 2) == [2.5, 4]
    assert stepping(others, resumed, 4) == [5, 6.5]


def test_a_group_that_is_removed_inside_of_a_period():
    """Its mean is written back once more, and no longer saved."""
    a, b = values = scalars(True, True)
    optimizer = torch.optim.SGD([dict(params=[a]), dict(params=[b])], lr=0.)
    resampler = PeriodicResampler(optimizer, PSWA(), 4)
    stepping(values, resampler, 2)
    del optimizer.param_groups[0]
    state = resampler.state_dict()
    assert list(state['mean']) == ['param.0'] and state['parameters'] == 1
    assert state['mean']['param.0'].item() == 1.5
    assert stepping(values, resampler, 2) == [2.5, 2.5]
    assert stepping(values, resampler, 4) == [6.5, 5]


def test_a_state_of_another_number_of_parameters_is_refused():
    two, three = scalars(True, True), scalars(True, True, True)
    saved = PeriodicResampler(torch.optim.SGD(two, lr=0.), PSWA(), 4)
    saved.step()
    other = PeriodicResampler(torch.optim.SGD(three, lr=0.), PSWA(), 4)
    with pytest.raises(ValueError, match='optimizer had 2 parameters, and '
                       'has 3'):
        other.load_state_dict(saved.state_dict())

"""Runs with pruned gradients against the algorithm, step by step."""
import math
import re
import subprocess
import sys
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from launching import ROOT, environment
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from pruned import HOOK, Pixels
from reference import assert_equal
from torch import nn
from toy import Points, Toy, Weights, here, runner, trained

from mmpsw.commands.launch import has_accelerator
from mmpsw.engine import GradientPruningHook
from mmpsw.methods.gradient_pruning import factor_of_rate

C90 = 1.6448536269514722 * math.sqrt(math.pi / 2)  # Phi^-1(0.95)


def train(work_dir, *hooks, model=None, **keys):
    weights = Weights()
    # With which a run without PSW too goes on inside of an epoch.
    hooks = (*(hooks or [HOOK]), dict(type='mmpsw.RandomStateHook'), weights)
    run = trained(work_dir, hooks=hooks, model=model or Pixels(), **keys)
    run.after = weights.after
    return run


def the_hook(run):
    return next(h for h in run.hooks if isinstance(h, GradientPruningHook))


# The algorithm


def prune_by_hand(grad, means, generator):
    """Number by number."""
    tau = C90 * sum(means) / len(means) if means else 0.
    means.append(grad.abs().mean().item())
    if not tau:
        return grad
    draws = torch.rand(grad.shape, generator=generator)
    out = [
        g if abs(g) >= tau else math.copysign(tau, g) if u < abs(g) / tau else
        0. for g, u in zip(grad.flatten().tolist(), draws.flatten().tolist())
    ]
    return torch.tensor(out).view_as(grad)


def by_hand(iterations):
    """The backward pass in pieces, with what is pruned between them."""
    model, data, inner = Pixels(), Points(), nn.functional
    conv1, norm1, conv2, conv3 = (model.conv1, model.norm1, model.conv2,
                                  model.conv3)
    fifo = [deque(maxlen=2) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    grad = torch.autograd.grad
    for i in range(iterations):
        generator = torch.Generator().manual_seed(int(
            np.random.SeedSequence((3, i, 0)).generate_state(1)[0]))
        order = torch.randperm(
            24, generator=torch.Generator().manual_seed(i // 6))
        batch = order[i % 6 * 4:][:4]
        a = conv1(data.x[batch].view(-1, 1, 2, 2))
        b = inner.relu(norm1(a))
        c = conv2(b)
        d = inner.relu(c)
        out = conv3(d).mean((1, 2, 3)).unsqueeze(1)
        loss = (out - data.y[batch]).square().mean()
        dd, *of_conv3 = grad(loss, [d, *conv3.parameters()],
                             retain_graph=True)
        dd = prune_by_hand(dd, fifo[0], generator)
        dc, = grad(d, c, dd, retain_graph=True)
        db, *of_conv2 = grad(c, [b, *conv2.parameters()], dc,
                             retain_graph=True)
        db = prune_by_hand(db, fifo[1], generator)
        da, *of_norm1 = grad(b, [a, *norm1.parameters()], db,
                             retain_graph=True)
        da = prune_by_hand(da, fifo[2], generator)
        of_conv1 = grad(a, conv1.weight, da)
        for p, g in zip((*norm1.parameters(), *conv1.parameters(),
                         *conv2.parameters(), *conv3.parameters()),
                        (*of_norm1, *of_conv1, *of_conv2, *of_conv3)):
            p.grad = g
        optimizer.step()
        zeros = (da == 0).sum() + (dc == 0).sum()
        count = da.numel() + dc.numel() + 4 * 9
        yield ({k: v.clone() for k, v in model.state_dict().items()},
               zeros.item() / count)


@pytest.mark.parametrize('device', ['cpu'], indirect=True)
def test_by_hand(tmp_path):
    run = train(tmp_path)
    shares = run.message_hub.get_scalar('train/gradient_pruning/zeros').data[0]
    for live, share, (state, by_hand_share) in zip(
            run.after, shares, by_hand(24), strict=True):
        for name, value in state.items():
            torch.testing.assert_close(live[name], value, msg=name)
        assert share == pytest.approx(by_hand_share)
    assert [layer.normalised for layer in the_hook(run).layers] == [
        True, False, False]


def test_rate_0_changes_nothing_and_leaves_nothing(tmp_path):
    plain = train(tmp_path / 'plain', Hook())
    pruned = train(tmp_path / '0', dict(HOOK, rate=0))
    assert_equal(plain.model, pruned.model)
    for module in pruned.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_nothing_is_drawn_or_counted_without_gradients(tmp_path):
    """A validation changes nothing, and what is validated is the model."""
    with_val = train(tmp_path / 'a')
    without = train(tmp_path / 'b', validate=False)
    for a, b in zip(with_val.after, without.after, strict=True):
        assert_equal(a, b)
    model, data = with_val.model.eval(), Points()
    out, _ = model(here(data.x), here(data.y), mode='predict')[0]
    assert with_val.message_hub.get_scalar('val/error').current() == (
        pytest.approx((out - here(data.y)).square().mean().item()))


def test_the_scale_of_a_loss_scales_tau(tmp_path):
    """1024 times the loss, by a 1024th of the rate: every bit is the same."""
    plain = train(tmp_path / 'a')
    scaled = train(tmp_path / 'b', model=Pixels(scale=1024.), optimizer=dict(
        type='SGD', lr=0.05 / 1024, momentum=0.9))
    assert_equal(plain.model, scaled.model)
    assert the_hook(scaled).layers[0].tau == 1024 * the_hook(
        plain).layers[0].tau


@pytest.mark.parametrize('reentrant', [True, False])
def test_activation_checkpointing(tmp_path, reentrant):
    """The hooks act once, in the recomputation or on what it is for."""
    plain = train(tmp_path / 'a')
    saving = train(tmp_path / 'b', model=Pixels(reentrant=reentrant))
    for name, value in plain.model.named_parameters():
        assert torch.equal(value, saving.model.get_parameter(name)), name
    a, b = (the_hook(run).layers for run in (plain, saving))
    assert [layer.count for layer in a] == [layer.count for layer in b]


@pytest.mark.parametrize('device', ['cpu'], indirect=True)
@pytest.mark.parametrize('keys', [
    {}, dict(psw=dict(type='PWALKS', last=3), wrapper=dict(dtype='bfloat16'),
             kind='mmpsw.PSWAmpOptimWrapper')], ids=['alone', 'psw, bf16'])
def test_resumed_runs_end_as_uninterrupted_ones(tmp_path, keys):
    """Also beside PSW, in mixed precision."""
    whole = train(tmp_path / 'whole', **keys)
    for iteration in (1, 5, 6, 15):
        resumed = train(
            tmp_path / str(iteration), **keys,
            resume_from=tmp_path / f'whole/iter_{iteration}.pth')
        assert_equal(whole.model, resumed.model)
        assert [h.means for h in the_hook(resumed).layers] == [
            h.means for h in the_hook(whole).layers]
    saved = torch.load(tmp_path / 'whole/iter_1.pth', weights_only=False)
    assert saved['gradient_pruning'].keys() == {'conv1', 'conv2', 'conv3'}
    assert not any('pruning' in name for name in saved['state_dict'])


TWO = (dict(HOOK, include='conv1'), dict(HOOK, exclude='conv1', rate=0.5))


@pytest.mark.parametrize('device', ['cpu'], indirect=True)
def test_two_hooks_resume_as_one_does(tmp_path):
    """Each at layers of its own; the log has the share of all."""
    whole = train(tmp_path / 'whole', *TWO)
    resumed = train(tmp_path / 'rest', *TWO,
                    resume_from=tmp_path / 'whole/iter_15.pth')
    assert_equal(whole.model, resumed.model)
    same = [dict(hook, rate=0.9) for hook in TWO]
    logs = [train(tmp_path / name, *hooks).message_hub.get_scalar(
        'train/gradient_pruning/zeros').data[0]
        for name, hooks in (('one', [HOOK]), ('two', same))]
    # The first iteration draws nothing; later ones draw other numbers.
    assert len(logs[0]) == len(logs[1]) == 24 and logs[0][0] == logs[1][0]


@pytest.mark.parametrize('device', ['cpu'], indirect=True)
def test_tau_goes_on_where_a_runner_is_told_to_resume(tmp_path):
    """By its method; a run that begins with the weights predicts anew."""
    whole = train(tmp_path / 'whole', checkpoint=dict(interval=1))
    saved = str(tmp_path / 'whole/epoch_3.pth')
    resumed = runner(tmp_path / 'rest', hooks=[HOOK], model=Pixels())
    resumed.resume(saved)
    resumed.train()
    assert_equal(whole.model, resumed.model)
    checkpoint = torch.load(saved, weights_only=False)
    del checkpoint['gradient_pruning']
    stock = str(tmp_path / 'stock.pth')
    torch.save(checkpoint, stock)
    assert_equal(*(train(tmp_path / 'new', load_from=path).model
                   for path in (saved, stock)))


@pytest.mark.skipif(has_accelerator(), reason='gloo on a CPU')
def test_two_processes(tmp_path):
    """The same weights everywhere, other draws, and exact when resumed."""
    subprocess.run([sys.executable, '-m', 'torch.distributed.run',
                    '--standalone', '--nproc-per-node', '2',
                    str(ROOT / 'tests/pruned.py'), str(tmp_path)],
                   env=environment(), check=True, timeout=300)
    whole, resumed = ([
        torch.load(tmp_path / f'{name}/rank{rank}.pt') for rank in (0, 1)
    ] for name in ('whole', 'resumed'))
    for name in [f'module.{name}' for name, _ in Pixels().named_parameters()]:
        for a, b in zip(*whole, strict=True):
            assert torch.equal(a[name], b[name])
        for one, other in zip(whole, resumed, strict=True):
            assert len(other) == 2
            assert torch.equal(one[-1][name], other[-1][name])


# A layer, and what is around it


def stepped(hook, model, *inputs):
    """The hook's part of an iteration, for each of the inputs."""
    run = SimpleNamespace(
        model=model, cfg=Config(), iter=0, hooks=[hook],
        message_hub=MessageHub.get_instance('pruning'))
    hook.before_train(run)
    for run.iter, x in enumerate(inputs):
        hook.before_train_iter(run)
        model(here(x)).sum().backward()
        hook.after_train_iter(run)
    return hook.layers


def test_a_layer_that_is_used_several_times_has_one_mean():
    """2 on four pixels and 1 on one: 9 / 5, not the mean of 2 and 1."""

    class Shared(nn.Module):

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x):
            x = x.requires_grad_()
            return 2 * self.conv(x).sum() + self.conv(x[..., :1, :1]).sum()

    model = here(Shared())
    nn.init.constant_(model.conv.weight, -3.)
    layer, = stepped(GradientPruningHook(0.), model, torch.ones(1, 1, 2, 2))
    assert layer.means[-1] == pytest.approx(3 * 9 / 5)


def test_a_gradient_that_overflowed_predicts_nothing():
    model = here(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)))
    second = stepped(GradientPruningHook(0.), model, torch.ones(1, 1, 2, 2))[1]
    before = list(second.means)
    second.finish_iteration(math.inf, 4, 0, 4)
    second.finish_iteration(math.nan, 4, 0, 4)
    assert list(second.means) == before and len(before) == 1


@pytest.mark.parametrize('norm', [
    nn.BatchNorm2d(2), nn.SyncBatchNorm(2), nn.InstanceNorm2d(2),
    nn.GroupNorm(1, 2), nn.LayerNorm([2, 3, 3])],
    ids=lambda norm: type(norm).__name__)
def test_norms_are_seen_wherever_they_are(norm):
    """What a frozen layer returns has no gradient, and is left alone."""

    class Net(nn.Module):

        def __init__(self):
            super().__init__()
            self.norm = norm
            self.last = nn.ConvTranspose2d(2, 1, 2)
            self.first = nn.Conv2d(1, 2, 1)
            self.frozen = nn.Conv2d(1, 1, 1).requires_grad_(False)

        def forward(self, x):
            return self.last(self.norm(self.first(self.frozen(x))).relu_())

    if isinstance(norm, nn.SyncBatchNorm):
        norm.eval()  # trains on GPUs only
    last, first, frozen = stepped(GradientPruningHook(0.9), here(Net()),
                                  torch.randn(4, 1, 3, 3))
    assert (last.normalised, first.normalised) == (False, True)
    assert frozen.summary() == 'frozen: had no gradient'


def test_inputs_by_keyword():
    """The gradients are those of inputs by position, and so is the place."""

    class Net(nn.Module):

        def __init__(self, **keys):
            super().__init__()
            torch.manual_seed(0)
            self.one = nn.Conv2d(1, 2, 1)
            self.norm = nn.BatchNorm2d(2)
            self.two = nn.ConvTranspose2d(2, 1, 2)
            self.keys = keys

        def forward(self, x):
            if not self.keys:
                return self.two(self.norm(self.one(x)), [3, 3])
            x = self.norm(input=self.one(input=x))
            return self.two(output_size=[3, 3], input=x)

    models = here(Net()), here(Net(by='keyword'))
    inputs = torch.randn(3, 4, 1, 2, 2)
    layers = [stepped(GradientPruningHook(0.9), model, *inputs)
              for model in models]
    assert [layer.normalised for layer in layers[1]] == [True, False]
    assert [layer.means for layer in layers[0]] == [
        layer.means for layer in layers[1]]
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_layer_asks_a_gpu_for_three_operations():
    """Those with all layers, and with one of them."""
    pytest.importorskip('triton', minversion='3.6')
    model = here(nn.Sequential(*(layer for _ in range(9) for layer in (
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()))))
    counts = []
    for include in '', '^0$':
        for _ in range(2):  # what is compiled first is not counted
            hook = GradientPruningHook(include=include)
            with torch.profiler.profile() as profile:
                stepped(hook, model, *torch.randn(4, 2, 8, 9, 9))
            for handle in hook.handles:
                handle.remove()
        counts.append(sum(event.device_type.name == 'CUDA'
                          for event in profile.events()))
    assert 0 < counts[0] - counts[1] <= 3 * 8 * 4


def test_patterns_choose_layers():
    names = [layer.name for layer in stepped(
        GradientPruningHook(include=['conv[12]', '3'], exclude='conv2'),
        Pixels())]
    assert names == ['conv1', 'conv3']


def test_what_is_logged(tmp_path, monkeypatch, device):
    lines = []
    monkeypatch.setattr('mmpsw.engine.gradient_pruning.print_log',
                        lambda line, **keys: lines.append(line))
    run = train(tmp_path, dict(HOOK, rate=0.99))
    layers = the_hook(run).layers
    log = '\n'.join(lines)
    found = re.search(r'conv1: zeros (\S+), pruned at its output, tau (\S+), '
                      r'off by (\S+)%', log)
    zeros, tau, off = map(float, found.groups())
    assert zeros == pytest.approx(layers[0].zeros / (24 * 4 * 6 * 9), abs=5e-4)
    assert zeros > 0.6
    assert tau == pytest.approx(
        factor_of_rate(0.99) * sum(layers[0].means) / 2, rel=0.01)
    assert off == pytest.approx(
        100 * sum(layers[0].errors) / len(layers[0].errors), abs=0.05)
    # conv1's input has no gradient: 4 products a number; twice 6, twice 4.
    costs = 1 * 4, 2 * 6, 2 * 4
    saved = sum(cost * layer.zeros for cost, layer in zip(costs, layers)) / (
        sum(cost * layer.count for cost, layer in zip(costs, layers)))
    assert f'{saved:.1%} of the multiply-adds' in log
    assert f'needs {1 / (1 - saved):.2f} times fewer' in log
    # An iteration in which all became zero has none; a GPU draws others.
    count = len(layers[0].errors)
    assert count == 23 if device == 'cpu' else 20 <= count <= 23


# What is refused before the first iteration


@pytest.mark.parametrize('hook, message', [
    (dict(rate=1.), 'rate=1.0 is not possible'),
    (dict(rate=-0.1), 'rate=-0.1 is not possible'),
    (dict(window=0), 'window=0'),
    (dict(include='(conv'), 'no regular expression'),
])
def test_bad_settings_are_refused(hook, message):
    with pytest.raises(ValueError, match=message):
        GradientPruningHook(**hook)


@pytest.mark.parametrize('hook, keys, message', [
    (dict(include='neck'), {}, "'neck' finds no convolution.*conv1, conv2"),
    (dict(exclude=['conv2', 'layer']), {}, "'layer' finds no convolution"),
    (dict(exclude='conv'), {}, 'exclude leaves no convolution'),
    ({}, dict(model=Toy()), 'needs convolutions.*Toy has none'),
    ({}, dict(cfg=dict(compile=True)), 'cannot be used with compile'),
    (dict(exclude='conv3'), dict(other=dict(HOOK, include='conv[23]')),
     'Two GradientPruningHooks prune conv2, but a layer has one tau'),
])
def test_bad_models_are_refused(tmp_path, hook, keys, message):
    keys = dict(keys)
    hooks = [dict(type=HOOK['type'], **hook)]
    if 'other' in keys:
        hooks.append(keys.pop('other'))
    with pytest.raises(ValueError, match=message):
        train(tmp_path, *hooks, **keys)
    assert not list(tmp_path.glob('*.pth'))

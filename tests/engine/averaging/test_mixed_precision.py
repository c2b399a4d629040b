"""AMP with a gradient scaler, bf16 on a CPU, and half-precision weights."""
import itertools

import mmengine
import pytest
import torch
from mmengine.optim import AmpOptimWrapper
from reference import Reference, assert_equal
from sklearn.datasets import load_digits
from torch import nn
from toy import Points, Toy, here, trained

from mmpsw.engine import PSWAmpOptimWrapper
from mmpsw.engine.averaging import optim_wrapper
from mmpsw.engine.averaging.follower import Follower
from mmpsw.methods.averaging import PSWA, PWALKS, PeriodicResampler

ITER = dict(by_epoch=False, buffers='keep')


@pytest.fixture
def amp(monkeypatch):
    """mmengine asserts an accelerator; a CPU scaler steps the same way."""
    if not hasattr(torch.amp, 'GradScaler'):
        pytest.skip('this torch has no gradient scaler for a CPU')
    module = mmengine.optim.optimizer.amp_optimizer_wrapper
    monkeypatch.setattr(optim_wrapper, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(module, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(module, 'GradScaler',
                        lambda **k: torch.amp.GradScaler('cpu', **k))


def followed(wrapper):
    """As PSWHook does it; returns what ends an iteration."""
    wrapper.follower = Follower(
        wrapper.psw, wrapper.optimizer, epoch_length=None)
    iterations = itertools.count(1)
    return lambda: wrapper.follower.after_iteration(next(iterations))


def test_amp_state_is_loaded_and_the_argument_is_left(amp):

    def build():
        w = nn.Parameter(torch.zeros(1))
        wrapper = PSWAmpOptimWrapper(torch.optim.SGD([w], lr=1.),
                                     psw=dict(type='PSWA', period=4, **ITER))
        followed(wrapper)
        return wrapper, w

    wrapper, w = build()
    wrapper.update_params(-w.sum())
    state = wrapper.state_dict()
    other, _ = build()
    other.load_state_dict(state)
    assert set(state) == {'state', 'param_groups', 'loss_scaler'}
    assert other.loss_scaler.state_dict() == wrapper.loss_scaler.state_dict()


def test_a_run_that_was_begun_on_a_cpu_goes_on_with_a_scaler(amp):
    wrappers = [PSWAmpOptimWrapper(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.),
        psw=dict(type='PSWA', period=4, **ITER)) for _ in 'ab']
    state = wrappers[0].state_dict()
    scale = wrappers[1].loss_scaler.state_dict()
    wrappers[1].load_state_dict({**state, 'loss_scaler': {}})
    assert wrappers[1].loss_scaler.state_dict() == scale


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('kind', [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize('clip', [None, dict(max_norm=10.)])
def test_dynamic_loss_scaling(amp, fused, kind, clip):
    """The fp16 gradient of the scaled loss overflows until the scale fits.

    2**24 is too large for 8 steps, and the growth every three steps makes it
    too large again.
    """
    keys = dict(
        loss_scale=dict(init_scale=2.**24, growth_interval=3), clip_grad=clip)
    psw = dict(type='PSWA', period=20, **ITER)
    w, other = (nn.Parameter(torch.tensor([1., -2.])) for _ in 'ab')
    wrapper = PSWAmpOptimWrapper(kind([w], lr=0.125, fused=fused), psw, **keys)
    stock = AmpOptimWrapper(optimizer=kind([other], lr=0.125), **keys)
    seen, follow = [], followed(wrapper)
    for _ in range(20):
        before = other.detach().clone()
        for amp_wrapper, weight in ((wrapper, w), (stock, other)):
            amp_wrapper.update_params(
                (weight.half() * torch.ones(2).half()).float().sum())
        if not torch.equal(other, before):
            seen.append(other.detach().clone())
        done = follow()
    assert done.samples == len(seen) == 9
    torch.testing.assert_close(w.detach(), torch.stack(seen).mean(0))


@pytest.mark.parametrize('fused', [False, True])
def test_the_updates_of_a_window_that_are_skipped(amp, fused):
    """A period ends with its last update, although that did not happen."""
    w = nn.Parameter(torch.zeros(1))
    wrapper = PSWAmpOptimWrapper(
        torch.optim.SGD([w], lr=1., fused=fused),
        psw=dict(type='PWALKS', last=2, period=3, **ITER))
    weights, messages, inf = [], [], float('inf')
    follow = followed(wrapper)
    wrapper.resampler.warn = messages.append
    # 1, 2, skipped -> 2; nothing is left of the second window; 4, 5, 6
    for scale in (1., 1., inf, 1., inf, inf, 1., 1., 1.):
        wrapper.update_params(-scale * w.sum())
        follow()
        weights.append(w.item())
    assert weights == [1, 2, 2, 3, 3, 3, 4, 5, 5.5]
    assert len(messages) == 1
    assert 'without those that a gradient scaler skipped' in messages[0]


def test_autocast(tmp_path, device):
    """Equals a user's own loop to the bit, also when it is resumed.

    bf16 on a CPU; on a GPU fp16, with a gradient scaler.
    """
    gpu = device == 'cuda'
    dtype, scale = (('float16', dict(loss_scale=64.)) if gpu else
                    ('bfloat16', {}))
    keys = dict(psw=dict(type='PWALKS', last=3), validate=False,
                kind='mmpsw.PSWAmpOptimWrapper',
                wrapper=dict(dtype=dtype, **scale))
    whole = trained(tmp_path, **keys)
    model = here(Toy())
    dtypes = set()
    model.net[3].register_forward_hook(lambda *a: dtypes.add(a[2].dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    resampler = PeriodicResampler(
        optimizer, PWALKS(last=3), 6, model=model)
    scaler = torch.amp.GradScaler(device, init_scale=64., enabled=gpu)
    data = Points()
    for epoch in range(4):
        generator = torch.Generator().manual_seed(epoch)
        for order in torch.randperm(24, generator=generator).split(4):
            with torch.autocast(device, getattr(torch, dtype)):
                loss = model(here(data.x[order]), here(data.y[order]),
                             mode='loss')
            optimizer.zero_grad()
            scaler.scale(loss['loss']).backward()
            scaler.step(optimizer)
            scaler.update()
            resampler.step()
    assert dtypes == {getattr(torch, dtype)}
    resumed = trained(tmp_path / 'resumed', **keys,
                      resume_from=tmp_path / 'iter_11.pth')
    assert_equal(whole.model, model)
    assert_equal(whole.model, resumed.model)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {
        torch.float32, torch.int64}


@pytest.mark.parametrize('device', ['cpu'], indirect=True)
def test_fp16_on_a_cpu_is_refused():
    w = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="dtype='float16' is not possible on "
                       "a CPU.*use dtype='bfloat16'"):
        PSWAmpOptimWrapper(torch.optim.SGD([w], lr=1.),
                           psw=dict(type='PSWA', period=4, **ITER),
                           dtype='float16')


def test_what_bf16_weights_lose_at_the_writing_back():
    """Rounding to nearest: at most 2**-8 of each weight.

    Five epochs on the handwritten digits: what is lost is a few percent of
    the way from the live weights to their mean, and the more of it the less
    they still travel.
    """
    data = load_digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    x = torch.tensor(data.data / 16, dtype=torch.bfloat16)
    y = torch.tensor(data.target)
    params = list(net.bfloat16().parameters())
    optimizer = torch.optim.SGD(params, lr=0.1)
    steps = len(x) // 32
    resampler = PeriodicResampler(optimizer, PSWA(), steps)
    reference = Reference(steps, steps)
    shares = []
    for _ in range(5):
        for batch in torch.randperm(len(x))[:32 * steps].split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]).float(),
                                        y[batch]).backward()
            optimizer.step()
            before = [p.detach().double().clone() for p in params]
            mean = reference.step(params)
            resampler.step()
        for p, m in zip(params, mean):
            assert ((p - m).abs() <= 2**-8 * m.abs() + 1e-5).all()
        lost, way = (torch.cat([(a - b).flatten() for a, b in zip(mean, other)
                                ]).norm().item()
                     for other in ([p.detach() for p in params], before))
        shares.append(lost / way)
    assert all(0.003 < share < 0.1 for share in shares)


def test_psw_keeps_the_fp32_mean_of_bf16_weights():
    w = nn.Parameter(torch.tensor([1.], dtype=torch.bfloat16))
    resampler = PeriodicResampler(
        torch.optim.SGD([w], lr=0.), PSWA(), 2, write_back=False)
    for value in (1., 1.0078125):  # neighbours in bf16
        w.data.fill_(value)
        resampler.step()
    assert resampler.average[0].item() == 1.00390625
    assert resampler.state_dict()['previous']['param.0'].dtype == torch.float32

"""Means in host memory: the same values, and no memory of the device."""
import copy

import pytest
import torch
from torch import nn

from mmpsw.methods.averaging import (
    PSWA,
    PSWM,
    PWALKS,
    PeriodicResampler,
    RunningMean,
)
from mmpsw.methods.averaging.pieces import at_once

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a GPU')
DEVICES = ['cpu', pytest.param('cuda', marks=needs_gpu)]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(device, steps, dtype=torch.float32, state=None, **keys):
    """A model after some steps, with all that an interruption would save."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 100, 3), nn.BatchNorm2d(100), nn.Flatten(),
        nn.Linear(1600, 50)).to(device, dtype)
    model[0].to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    resampler = PeriodicResampler(
        optimizer, period=4, buffers=model.buffers(), **keys)
    start = 0
    if state is not None:
        start = state['psw']['iteration']
        model.load_state_dict(state['model'])
        optimizer.load_state_dict(state['optimizer'])
        resampler.load_state_dict(state['psw'])
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 3, 6, 6, generator=generator).to(device, dtype)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        resampler.step()
    return copy.deepcopy(
        dict(
            model=model.state_dict(),
            optimizer=optimizer.state_dict(),
            psw=resampler.state_dict()))


def flat(state):
    """All tensors of a state, by their keys."""
    if isinstance(state, torch.Tensor):
        return {'': state.detach().cpu()}
    if not isinstance(state, (dict, list)):
        return {}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {
        f'{key}.{name}': tensor
        for key, value in items for name, tensor in flat(value).items()
    }


def assert_equal(one, two):
    one, two = flat(one), flat(two)
    assert one.keys() == two.keys() and len(one) > 10
    for key, tensor in one.items():
        assert torch.equal(tensor, two[key]), key


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('keys', [
    dict(technique=PSWA()),
    dict(technique=PWALKS(last=2)),
    dict(technique=PSWM()),
    dict(technique=PSWA(), write_back=False),
], ids=str)
def test_equals_what_is_not_offloaded(device, dtype, keys):
    """To the bit, after two periods and in the middle of a third."""
    here = trained(device, 11, dtype, **keys)
    assert_equal(here, trained(device, 11, dtype, offload='cpu', **keys))


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('first, then', [('cpu', None), (None, 'cpu')])
@pytest.mark.parametrize('write_back', [True, False])
def test_resumes_with_and_without(device, first, then, write_back):
    keys = dict(technique=PSWM(), write_back=write_back)
    whole = trained(device, 14, **keys)
    state = trained(device, 7, offload=first, **keys)
    assert_equal(whole,
                 trained(device, 14, state=state, offload=then, **keys))


def test_a_tensor_with_gaps_stays_where_it_is():
    gaps, dense = torch.zeros(10, 10)[::2], torch.zeros(10)
    running = RunningMean([gaps, dense], 2)
    for value in (1., 2., 6.):
        gaps.fill_(value)
        dense.fill_(2 * value)
        running.update()
    assert torch.equal(running.mean[0], torch.full((5, 10), 3.))
    assert torch.equal(running.mean[1], torch.full((10, ), 6.))


def test_what_stays_on_the_device():
    """Two buffers, however large the weights are."""
    weights = [torch.zeros(at_once(torch.device('cpu'))) for _ in range(5)]
    running = RunningMean([*weights, torch.zeros(3)], 6)
    running.update()
    (group, ) = running._groups
    assert [len(b) for b in group.buffers] == [len(weights[0])] * 2
    flat = group.flat.untyped_storage()
    assert flat.nbytes() == 4 * (5 * len(weights[0]) + 3)
    assert {m.untyped_storage().data_ptr()
            for m in running.mean} == {flat.data_ptr()}


@needs_gpu
@pytest.mark.parametrize('technique, write_back', [
    (PSWA(), True), (PSWM(), True), (PSWA(), False)])
def test_the_memory_of_a_gpu(technique, write_back):
    weights = [nn.Parameter(torch.zeros(2**26, device='cuda'))]
    psw = PeriodicResampler(
        torch.optim.SGD(weights, lr=0.), technique, 4,
        write_back=write_back, offload='cpu')
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(12):
        psw.step()
        with psw.averaged():
            pass
    more = torch.cuda.max_memory_allocated() - before
    assert more <= 3 * 4 * at_once(torch.device('cuda'))
    assert psw.state_dict()['iteration'] == 12


@needs_gpu
def test_a_step_waits_for_the_sample_before_it():
    """A slow transfer still sees the weights that were there."""
    w = nn.Parameter(torch.zeros(2**26, device='cuda'))
    optimizer = torch.optim.SGD([w], lr=1.)
    psw = PeriodicResampler(optimizer, PSWA(), 100, offload='cpu')
    w.grad = -torch.ones_like(w)
    for _ in range(9):
        optimizer.step()
        psw.step()
    (mean, ) = psw.state_dict()['mean'].values()
    assert mean.min() == mean.max() == 5.

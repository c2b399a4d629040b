"""The running mean against the obvious one, bit for bit."""
import pytest
import torch
from reference import Reference
from torch import nn

from mmpsw.methods.averaging import PSWM, PeriodicResampler, RunningMean
from mmpsw.methods.averaging.mean import ACCUMULATED_IN


def tensors(dtype):
    """All sizes and layouts: empty, scalar, odd, strided, expanded."""
    torch.manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, dtype=torch.float64).to(dtype)

    return [
        randn(0), randn(), randn(7), randn(300_001),
        randn(70, 33, 3, 3).to(memory_format=torch.channels_last),
        randn(400, 700).t(), randn(90, 50)[::2, 1:40],
        randn(50, 1).expand(50, 4),
    ]


def change(live):
    for i, tensor in enumerate(live):
        if tensor.numel() and 0 not in tensor.stride():
            generator = torch.Generator().manual_seed(i)
            step = torch.randn(tensor.shape, generator=generator, device='cpu')
            tensor.add_(step.to(tensor), alpha=0.125)


def obvious(mean, live, n):
    """``mu + (w - mu) / n``, one tensor after another, in new memory."""
    if n == 1:
        return [w.to(ACCUMULATED_IN[w.dtype], copy=True) for w in live]
    return [torch.lerp(m, w.to(m.dtype), 1 / n) for m, w in zip(mean, live)]


@pytest.mark.parametrize('dtype', ACCUMULATED_IN)
def test_each_sample_is_the_obvious_one(dtype):
    live = tensors(dtype)
    fast, mean = RunningMean(), None
    for _ in range(2):
        for n in range(1, 6):
            change(live)
            fast.update(live)
            mean = obvious(mean, live, n)
            for a, b in zip(fast.mean, mean, strict=True):
                assert a.dtype == b.dtype and torch.equal(a, b)
        fast.restart()


def test_weights_that_change_their_dtype_between_windows():
    """What model.bfloat16() does: the parameter is the same object."""
    w = nn.Parameter(torch.zeros(5))
    fast = RunningMean()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for value in (1., 2., 6.):
            w.data = torch.full((5, ), value, dtype=dtype)
            fast.update([w])
        assert fast.mean[0].tolist() == [3.] * 5
        fast.restart()


@pytest.mark.parametrize('dtype, tolerance', [
    (torch.bfloat16, 2**-8),
    (torch.float32, 1e-6),
])
def test_large_weights_equal_the_reference(dtype, tolerance):
    """Three periods of PSWM, written back to tensors of several layouts."""
    params = [nn.Parameter(t.clone()) for t in tensors(dtype)[2:6]]
    resampler = PeriodicResampler(
        torch.optim.SGD(params, lr=0.), PSWM(momentum=0.3), 4)
    slow = [p.detach().clone() for p in params]
    reference = Reference(4, 4, 0.3)
    for _ in range(12):
        change([p.data for p in params])
        change(slow)
        done = resampler.step()
        m = reference.step(slow)
        if m is not None:
            before = torch.cat([w.double().flatten() for w in slow])
            slow = [value.to(dtype) for value in m]
            after = torch.cat([value.flatten() for value in m])
            expected = (after - before).norm() / before.norm()
            assert done.shift == pytest.approx(expected.item(), rel=1e-3)
        for a, b in zip(params, slow, strict=True):
            torch.testing.assert_close(
                a.detach(), b, rtol=tolerance, atol=tolerance)

"""The running mean against the obvious one, bit for bit."""
import pytest
import torch
from reference import Reference
from torch import nn

from mmpsw.methods.averaging import PSWM, PeriodicResampler, RunningMean
from mmpsw.methods.averaging.mean import ACCUMULATED_IN

DTYPES = [
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.complex64
]


@pytest.fixture(autouse=True)
def one_thread():
    """Several are slower on tensors of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensors(dtype):
    """All sizes and layouts: empty, scalar, odd, larger than any buffer."""
    torch.manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, dtype=torch.float64).to(dtype)

    return [
        randn(0),
        randn(),
        randn(7),
        randn(300_001),
        randn(2, 200_000),
        randn(70, 33, 3, 3).to(memory_format=torch.channels_last),
        randn(640, 70, 3, 3).to(memory_format=torch.channels_last),
        randn(40, 30).t(),
        randn(400, 700).t(),
        randn(10, 10)[::2, 1:7],
        randn(900, 500)[::2, 1:400],
        randn(50, 1).expand(50, 4),
    ]


def change(live):
    for i, tensor in enumerate(live):
        if tensor.numel() and 0 not in tensor.stride():
            generator = torch.Generator().manual_seed(i)
            tensor.add_(
                torch.randn(tensor.shape, generator=generator).to(
                    tensor.dtype),
                alpha=0.125)


def obvious(mean, live, n):
    """``mu + (w - mu) / n``, one tensor after another, in new memory."""
    if n == 1:
        return [w.to(ACCUMULATED_IN[w.dtype], copy=True) for w in live]
    return [torch.lerp(m, w.to(m.dtype), 1 / n) for m, w in zip(mean, live)]


@pytest.mark.parametrize('threads, offloaded', [(1, 0), (2, 0), (1, 12)])
@pytest.mark.parametrize('dtype', DTYPES)
def test_each_sample_is_the_obvious_one(dtype, threads, offloaded):
    """Threads share the elements out, which must change no bit either."""
    torch.set_num_threads(threads)
    live = tensors(dtype)
    fast, mean = RunningMean(live, offloaded), None
    for _ in range(2):
        for n in range(1, 6):
            change(live)
            fast.update()
            mean = obvious(mean, live, n)
            for a, b in zip(fast.mean, mean, strict=True):
                assert a.dtype == b.dtype and torch.equal(a, b)
        fast.restart()


def test_several_dtypes_at_once():
    live = [tensor for dtype in DTYPES for tensor in tensors(dtype)]
    live = live[::2] + live[1::2]
    fast, mean = RunningMean(live), None
    for n in range(1, 4):
        change(live)
        fast.update()
        mean = obvious(mean, live, n)
    for a, b in zip(fast.mean, mean, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
@pytest.mark.parametrize('size', [3, 300_000])
def test_new_data_of_the_same_parameter_is_followed(dtype, size):
    w = nn.Parameter(torch.zeros(size, dtype=dtype))
    fast = RunningMean([w])
    for value in (1., 2., 6.):
        w.data = torch.full((size, ), value, dtype=dtype)
        fast.update()
    assert torch.equal(fast.mean[0], torch.full((size, ), 3.))


def test_weights_that_change_their_dtype_between_windows():
    """What model.bfloat16() does: the parameter is the same object."""
    w = nn.Parameter(torch.zeros(5))
    fast = RunningMean([w])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for value in (1., 2., 6.):
            w.data = torch.full((5, ), value, dtype=dtype)
            fast.update()
        assert fast.mean[0].tolist() == [3.] * 5
        fast.restart()


def many_vectors(dtype):
    """Short vectors, one that has gaps and one that is long, and a matrix."""
    torch.manual_seed(0)
    shapes = [(1, ), (64, ), (0, ), (4096, ), (4097, ), (700, 900)]
    return [torch.randn(shape).to(dtype) for shape in shapes] + [
        torch.randn(40).to(dtype)[::2]
    ]


@pytest.mark.parametrize('block', [None, 3])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64,
                                   torch.complex64])
def test_joined_vectors_equal_the_obvious_mean(dtype, block):
    live = many_vectors(dtype)
    fast = RunningMean(live, block=block)
    slow = [RunningMean([tensor], block=block) for tensor in live]
    for _ in range(2):
        for _ in range(11):
            change(live)
            for mean in (fast, *slow):
                mean.update()
        kinds = sorted(type(group).__name__ for group in fast._groups)
        assert kinds == ['_Group', '_JoinedGroup']
        for one, other in zip(fast.complete(), slow):
            assert torch.equal(one, other.complete()[0])
        assert not any(a.data_ptr() == b.data_ptr()
                       for a, b in zip(fast.mean, live) if a.numel())


@pytest.mark.parametrize('dtypes', [
    (torch.float32, torch.bfloat16, torch.float64),
    (torch.bfloat16, torch.float32, torch.bfloat16),
])
def test_joined_vectors_that_change_their_dtype(dtypes):
    params = [nn.Parameter(t) for t in many_vectors(dtypes[0])]
    fast = RunningMean(params)
    for dtype in dtypes:
        for value in (1., 2., 6.):
            for param in params:
                param.data = torch.full(param.shape, value, dtype=dtype)
            fast.update()
        for mean in fast.complete():
            assert torch.equal(mean, torch.full(mean.shape, 3.))


def test_one_of_the_joined_vectors_changes_its_dtype():
    params = [nn.Parameter(t) for t in many_vectors(torch.float32)]
    fast = RunningMean(params)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for factor in (1, 2, 6):
            for i, param in enumerate(params):
                value = torch.full_like(param.data, i * factor)
                param.data = value.to(dtype) if i == 1 else value
            fast.update()
        for i, mean in enumerate(fast.complete()):
            assert torch.equal(mean, torch.full(mean.shape, 3. * i))


def test_a_state_with_joined_vectors_goes_on():
    """Saved in the midst of a window, and loaded by another resampler."""

    def resampler():
        params = [nn.Parameter(t) for t in many_vectors(torch.float32)]
        return PeriodicResampler(
            torch.optim.SGD(params, lr=0.), PSWM(), 5), params

    (one, params), (other, copies) = resampler(), resampler()
    for step in range(20):
        for some in (params, copies):
            change([param.data for param in some])
        one.step()
        other.step()
        if step in (2, 7, 11):
            state, (other, copies) = other.state_dict(), resampler()
            for copy, param in zip(copies, params):
                copy.data.copy_(param)
            other.load_state_dict(state)
        for copy, param in zip(copies, params):
            assert torch.equal(copy, param)


@pytest.mark.parametrize('dtype, tolerance', [
    (torch.bfloat16, 2**-8),
    (torch.float32, 1e-6),
])
def test_large_weights_equal_the_reference(dtype, tolerance):
    """Three periods of PSWM on tensors that are worked on in pieces."""
    params = [nn.Parameter(t.clone()) for t in tensors(dtype)[2:7]]
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


def test_norms_of_values_whose_squares_overflow():
    """|w| = 5e30, |m - w| = 1e30: fp32 holds neither square."""
    w = nn.Parameter(torch.zeros(2))
    resampler = PeriodicResampler(torch.optim.SGD([w], lr=0.), PSWM(), 2)
    for value in ([3e30, 2e30], [3e30, 4e30]):
        w.data = torch.tensor(value)
        done = resampler.step()
    assert done.applied and done.shift == pytest.approx(0.2, rel=1e-6)

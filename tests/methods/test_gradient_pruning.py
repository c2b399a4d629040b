"""Pruning by hand, without bias, and with the shares that theory gives."""
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import environment
from scipy import integrate, stats
from torch.utils._python_dispatch import TorchDispatchMode

from mmpsw.methods.gradient_pruning import (
    Pruner,
    factor_of_rate,
    prune,
)

INF, NAN = math.inf, math.nan
SAMPLES = 1_000_000
# The shares of zeros that exactly normal gradients come out with.
SHARES = {.7: .380, .8: .451, .9: .540, .95: .603, .99: .691}


def generator(seed=0):
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def test_by_hand():
    grad = torch.tensor([3., -2., 0.5, -0.5, 1., -1., 0., 0.3])
    draws = torch.rand(8, generator=generator()).tolist()
    expected = [
        g if abs(g) >= 2 else math.copysign(2, g) if draw < abs(g) / 2 else 0
        for g, draw in zip(grad.tolist(), draws)
    ]
    assert {2., -2., 0.} <= set(expected)
    assert prune(grad, 2., generator()).tolist() == expected
    assert grad.tolist()[2] == 0.5  # the caller's own is left as it is


@pytest.mark.parametrize('rate', SHARES)
def test_tau_of_normal_gradients(rate):
    """The share ``rate`` lies below tau."""
    sigma = 0.02
    mean = stats.halfnorm(scale=sigma).mean()
    tau = factor_of_rate(rate) * mean
    assert stats.halfnorm(scale=sigma).cdf(tau) == pytest.approx(rate)


def zeros(density, tau):
    """E max(0, 1 - |g| / tau), integrated."""
    return integrate.quad(lambda g: density(g) * (1 - abs(g) / tau), -tau, tau,
                          points=[0])[0]


@pytest.mark.parametrize('kind, rate, share', [
    *((torch.distributions.Normal, *pair) for pair in SHARES.items()),
    (torch.distributions.Laplace, .9, .577),
])
def test_shares_of_zeros(kind, rate, share):
    """Of a million numbers: five standard errors are 0.0025."""
    torch.manual_seed(0)
    grad = kind(0., 0.3).sample((SAMPLES, ))
    tau = factor_of_rate(rate) * grad.abs().mean().item()
    found = (prune(grad, tau, generator(1)) == 0).float().mean().item()
    law = {'Normal': stats.norm, 'Laplace': stats.laplace}[kind.__name__]
    law = law(scale=0.3)
    exact = zeros(law.pdf, factor_of_rate(rate) * law.expect(abs))
    assert found == pytest.approx(exact, abs=0.0025)
    assert found == pytest.approx(share, rel=0.01)


@pytest.mark.parametrize('dtype', [
    torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('value', [1.9, -1., 0.3, -0.01, 1e-3])
def test_without_bias(dtype, value):
    """How often g is lifted is binomial with |g| / tau.

    Each of the 20 cases is refused wrongly with a probability of 1e-6, and
    with the fixed seeds always or never.
    """
    grad = torch.full((SAMPLES, ), value, dtype=dtype)
    tau = torch.tensor(2.1, dtype=dtype).item()
    pruned = prune(grad, 2.1, generator(1))
    lifted = math.copysign(tau, value)
    assert pruned.dtype == dtype
    assert set(pruned.unique().tolist()) == {lifted, 0.}
    test = stats.binomtest(int(pruned.count_nonzero()), SAMPLES,
                           abs(grad[0].item()) / tau)
    assert test.pvalue > 1e-6


def test_what_is_large_zero_or_not_finite_stays():
    grad = torch.tensor([5., -5., 0., INF, -INF, NAN])
    torch.testing.assert_close(prune(grad, 2., generator()), grad, rtol=0,
                               atol=0, equal_nan=True)


def test_rate_0_changes_nothing():
    grad = torch.randn(100)
    assert factor_of_rate(0) == 0
    assert prune(grad, factor_of_rate(0) * 1., generator()) is grad


def test_a_tau_beyond_half_precision_has_no_bias():
    """6e4 of 65504, the largest number of float16, is 91.6 %."""
    grad = torch.full((SAMPLES, ), 6e4, dtype=torch.float16)
    pruned = prune(grad, 1e6, generator())
    assert set(pruned.unique().tolist()) == {0., 65504.}
    test = stats.binomtest(int(pruned.count_nonzero()), SAMPLES,
                           grad[0].item() / 65504)
    assert test.pvalue > 1e-6


def test_layouts():
    """Memory order is kept, and expanded gradients have draws of their own."""
    grad = torch.randn(2, 8, 4, 4).contiguous(
        memory_format=torch.channels_last)
    assert prune(grad, 1., generator()).is_contiguous(
        memory_format=torch.channels_last)
    same = torch.ones(()).expand(1000)
    assert 400 < prune(same, 2., generator()).count_nonzero() < 600


@pytest.mark.parametrize('share', [-0.1, 1, 1.5, NAN])
def test_bad_shares_are_refused(share):
    with pytest.raises(ValueError, match='rate=.* use a number in'):
        factor_of_rate(share)


# The same by one Triton kernel


def test_the_kernel_by_an_interpreter():
    """On a CPU, against arrays; where there is a GPU, on that too."""
    pytest.importorskip('triton', minversion='3.6')
    script = Path(__file__).parents[1] / 'pruning_kernel.py'
    subprocess.run([sys.executable, str(script)], check=True, timeout=300,
                   env=dict(environment(), TRITON_INTERPRET='1'))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_the_kernel_on_a_gpu():
    pytest.importorskip('triton', minversion='3.6')
    from pruning_kernel import check
    check('cuda')


@pytest.mark.parametrize('dtype', ['fp32', 'bf16', 'fp16'])
def test_the_kernel_compiles_for_an_h100(dtype):
    """Which needs no GPU."""
    pytest.importorskip('triton', minversion='3.6')
    compiler = pytest.importorskip('triton.compiler')
    from triton.backends.compiler import GPUTarget

    from mmpsw.methods.gradient_pruning.kernel import BLOCK, _kernel
    constants = dict(pruned=True, sizes=True, zeros=True, programs=8,
                     block=BLOCK)
    types = dict(grad=f'*{dtype}', out=f'*{dtype}', row='*fp32', tau='fp32',
                 key='u64', count='i32') | dict.fromkeys(
                     constants, 'constexpr')
    found = compiler.compile(
        compiler.ASTSource(_kernel, types, constants),
        target=GPUTarget('cuda', 90, 32))
    assert found.asm['cubin'] and found.metadata.name == '_kernel'


def test_the_operations_of_a_pruner(device):
    """torch's own: 2 for |g|, 7 to prune, 3 for zeros; a tau is rounded."""
    class Count(TorchDispatchMode):
        names = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names += (func.overloadpacket.__name__, )
            return func(*args, **(kwargs or {}))

    pruner = Pruner(2, torch.device(device))
    grad = torch.randn(2, 8, 4, 4)
    with Count() as pruned:
        pruner.prune(grad, 1., 0, False)
    assert [name for name in pruned.names if name not in (
        'promote_types', 'lift_fresh', 'detach', '_local_scalar_dense')] == [
        'linalg_vector_norm', 'add_', 'empty_like', 'uniform_', 'abs', 'lt_',
        'clamp_', 'copysign_', 'mul_']
    with Count() as counted:
        pruner.count(grad, 1)
    assert counted.names == ('eq', 'sum', 'add_')
    sums = pruner.take()
    assert sums[0].tolist() == pytest.approx([grad.abs().sum().item(), 0])
    assert not sums[1].any() and not pruner.take().any()

"""Pruning by hand, without bias, and with the shares that theory gives."""
import math

import pytest
import torch
from scipy import integrate, stats

from mmpsw.methods.gradient_pruning import (
    factor_of_rate,
    factor_of_sparsity,
    prune,
    sparse,
    sparse_conv2d,
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


@pytest.mark.parametrize('sparsity', [0.5, 0.9, 0.99])
@pytest.mark.parametrize('law', [stats.norm, stats.laplace, stats.t(3)])
def test_sparsity_is_the_least_share(law, sparsity):
    mean = 2 * integrate.quad(lambda g: g * law.pdf(g), 0, INF)[0]
    share = zeros(law.pdf, factor_of_sparsity(sparsity) * mean)
    assert sparsity - 1e-9 < share < sparsity + 0.08
    if law is stats.norm and sparsity == 0.9:  # what the README says of it
        sigmas = factor_of_sparsity(sparsity) * mean
        assert sigmas == pytest.approx(7.98, abs=0.01)
        variance = sigmas * mean
        assert variance == pytest.approx(6.4, abs=0.05)


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
@pytest.mark.parametrize('factor, name', [
    (factor_of_rate, 'rate'), (factor_of_sparsity, 'sparsity')])
def test_bad_shares_are_refused(factor, name, share):
    with pytest.raises(ValueError, match=f'{name}=.* use a number in'):
        factor(share)


# The backward pass that skips zeros

GEOMETRIES = {
    '3x3': (16, 8, (3, 3), 1, 1, 1),
    'stride': (32, 24, (3, 3), 2, 1, 1),
    'dilation': (64, 5, (3, 3), 1, (2, 3), (2, 3)),
    '1x1, 3 sixteens': (48, 16, (1, 1), (2, 1), 0, 1),
    'no square': (128, 4, (1, 5), (1, 2), (0, 3), 1),
    'more padding than input': (16, 4, (2, 2), 3, 4, 1),
}


def convolved(conv, geometry, zeros, dtype, pixels=9):
    """A convolution, and its gradients for an output's gradient with zeros."""
    inputs, outputs, kernel, *rest = geometry
    stride, padding, dilation = (
        v if isinstance(v, tuple) else (v, v) for v in rest)
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(shape).to(dtype).requires_grad_()
        for shape in ((2, inputs, pixels, pixels - 2),
                      (outputs, inputs, *kernel), (outputs, )))
    out = conv(x, weight, bias, stride, padding, dilation)
    grad = torch.randn(out.shape) * (torch.rand(out.shape) >= zeros)
    return out, *torch.autograd.grad(out, (x, weight, bias), grad.to(dtype))


def assert_close(found, expected):
    """Up to the rounding of float32."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5,
                                   atol=1e-6 * other.abs().max().item())


@pytest.mark.parametrize('device', ['cpu'], indirect=True)
@pytest.mark.parametrize('geometry', GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize('zeros, dense', [
    (0.3, False), (0.9, False), (1, False), (0.5, True)])
def test_sparse_convolutions(monkeypatch, geometry, zeros, dense):
    """Equal those of torch in float64, whichever kernels are taken."""
    if dense:
        monkeypatch.setattr(sparse, 'build_kernels', None)
    else:
        monkeypatch.setattr(sparse, 'BREAK_EVEN', 0)
    found = convolved(sparse_conv2d, geometry, zeros, torch.float32)
    expected = convolved(torch.nn.functional.conv2d, geometry, zeros,
                         torch.float64)
    assert_close(found, expected)
    if zeros == 1:
        assert not any(one.any() for one in found[1:])


@pytest.mark.parametrize('device', ['cpu'], indirect=True)
def test_more_pixels_than_a_tile(monkeypatch):
    monkeypatch.setattr(sparse, 'BREAK_EVEN', 0)
    keys = (GEOMETRIES['3x3'], 0.7)
    found = convolved(sparse_conv2d, *keys, torch.float32, pixels=33)
    expected = convolved(torch.nn.functional.conv2d, *keys, torch.float64,
                         pixels=33)
    assert_close(found, expected)


def test_a_missing_compiler_is_said(monkeypatch):
    monkeypatch.setenv('PATH', '')
    sparse.build_kernels.cache_clear()
    with pytest.raises(ValueError, match='cannot be built.*leave out sparse'):
        sparse.build_kernels()

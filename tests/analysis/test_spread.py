"""Welford's mean and deviation, against numpy over all samples at once."""
import math

import numpy as np
import pytest
import torch

from mmpsw.analysis.spread import Spread


def samples(count, offset=0.):
    generator = torch.Generator().manual_seed(0)
    return [
        dict(
            a=torch.randn(4, 3, generator=generator) + offset,
            b=torch.randn(5, generator=generator) * 0.01 + offset)
        for _ in range(count)
    ]


def spread_of(taken, **keys):
    spread = Spread(taken[0], **keys)
    for sample in taken:
        spread.update(list(sample.values()))
    return spread


@pytest.mark.parametrize('count', [1, 2, 50])
@pytest.mark.parametrize('offset', [0., 1e4])  # far away from their spread
def test_welford_is_numpys(count, offset):
    taken = samples(count, offset)
    spread = spread_of(taken)
    for index, (name, layer) in enumerate(zip('ab', spread.layers())):
        every = np.stack([s[name].double().numpy() for s in taken])
        mean, std = every.mean(0), every.std(0)
        np.testing.assert_allclose(spread.mean[index], mean, rtol=1e-12)
        np.testing.assert_allclose(spread.std()[index], std, atol=1e-10)
        assert (layer.name, layer.samples) == (name, count)
        assert layer.shape == every.shape[1:]
        assert layer.std == pytest.approx(std.mean(), abs=1e-10)
        rms = np.sqrt((mean**2).mean())
        assert layer.rms == pytest.approx(rms)
        assert layer.relative_std == pytest.approx(std.mean() / rms, abs=1e-9)
        shift = (np.linalg.norm(mean - every[-1]) /
                 np.linalg.norm(every[-1]))
        assert layer.shift == pytest.approx(shift, abs=1e-10)


def test_weights_that_stay_zero_have_no_relative_spread():
    layer, = spread_of([dict(a=torch.zeros(3))] * 2).layers()
    assert layer.std == 0
    assert math.isnan(layer.relative_std) and math.isnan(layer.shift)


def test_samples_are_copies():
    live = dict(a=torch.ones(2))
    spread = Spread(live)
    spread.update([live['a']])
    live['a'] += 2
    spread.update([live['a']])
    assert spread.mean[0].tolist() == [2., 2.]
    assert spread.std()[0].tolist() == [1., 1.]


def test_the_histogram_of_standardised_weights():
    taken = samples(200)
    histogram, = spread_of(taken, traced=['a'], elements=7).histograms()
    every = np.stack([s['a'].double().numpy().ravel() for s in taken])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    chosen = every[:, order[:7].numpy()]
    standard = (chosen - chosen.mean(0)) / chosen.std(0)
    counts, _ = np.histogram(standard, histogram.edges)
    widths = np.diff(histogram.edges)
    np.testing.assert_allclose(histogram.density,
                               counts / counts.sum() / widths)
    still = spread_of([dict(a=torch.ones(3, 3))] * 2, traced=['a'])
    assert still.histograms() == []

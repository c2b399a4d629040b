"""Lines, planes and widths, against losses that are known in closed form."""
import math

import numpy as np
import pytest
import torch
from torch import nn

from mmpsw.analysis import loss_surface
from mmpsw.analysis.loss_surface import LinePoint, Width


class Bowl(nn.Module):
    """``sum_j h_j / 2 * ||w_j - c_j||^2`` over the filters j of w."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.center = torch.randn(
            3, 2, 4, generator=generator, dtype=torch.float64)
        self.curvature = torch.tensor([0.5, 2., 7.], dtype=torch.float64)
        self.weight = nn.Parameter(self.center.clone())
        self.bias = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.register_buffer('var', torch.ones(3))
        self.register_buffer('steps', torch.tensor(5))

    @torch.no_grad()
    def loss(self):
        squares = (self.weight - self.center).square().sum((1, 2))
        return (self.curvature * squares).sum().item() / 2

    @property
    def risen_by_one_step(self):
        """The rise at length 1: each filter moved by its own norm."""
        squares = self.center.square().sum((1, 2))
        return (self.curvature * squares).sum().item() / 2


@pytest.fixture
def bowl():
    return Bowl()


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_a_line_is_the_parabola(bowl):
    a, b = state(bowl), state(bowl)
    b['weight'] = b['weight'] + 0.5
    ts = [-0.25, 0., 0.3, 1., 1.25]
    points = loss_surface.line(bowl, a, b, ts, bowl.loss,
                               lambda: dict(shift=bowl.weight[0, 0, 0].item()))
    # 8 elements in a filter, each 0.5 t from the centre
    expected = [9.5 / 2 * 8 * (0.5 * t)**2 for t in ts]
    np.testing.assert_allclose([p.loss for p in points], expected, atol=1e-14)
    assert [p.t for p in points] == ts
    first = bowl.center[0, 0, 0].item()
    np.testing.assert_allclose([p.metrics['shift'] for p in points],
                               [first + 0.5 * t for t in ts])


def test_the_ends_are_exact_and_variances_stay_positive():
    generator = torch.Generator().manual_seed(1)
    a = dict(w=torch.randn(99, generator=generator), var=torch.tensor([9.]),
             steps=torch.tensor(1))
    b = dict(w=torch.randn(99, generator=generator), var=torch.tensor([1.]),
             steps=torch.tensor(2))
    at = {t: loss_surface.interpolate(a, b, t, ['w'])
          for t in (-0.25, 0., 0.5, 1., 1.25)}
    assert torch.equal(at[0.]['w'], a['w'])
    assert torch.equal(at[1.]['w'], b['w'])
    torch.testing.assert_close(at[1.25]['w'], 1.25 * b['w'] - 0.25 * a['w'])
    assert [at[t]['var'].item() for t in at] == [9., 9., 5., 1., 1.]
    assert 'steps' not in at[0.]


def test_barrier_by_hand():
    def barrier(**losses):
        return loss_surface.barrier(
            [LinePoint(t, loss, {}) for t, loss in losses['curve']])

    # at 0.5 the straight line from 1 to 3 is at 2
    assert barrier(curve=[(-.25, 99.), (0., 1.), (.5, 2.5), (1., 3.)]) == 0.5
    assert barrier(curve=[(0., 1.), (.5, 0.), (1., 3.), (1.25, 9.)]) == 0.0


def test_directions_have_the_filters_norms(bowl):
    direction = loss_surface.random_direction(bowl, 3)
    assert list(direction) == ['weight']  # no bias, nothing that is frozen
    for moved, weight in zip(direction['weight'], bowl.center):
        np.testing.assert_allclose(np.linalg.norm(moved.numpy()),
                                   np.linalg.norm(weight.numpy()))
    # scaled filters, same draws: the direction scales with them
    with torch.no_grad():
        bowl.weight[1] *= 10
        bowl.weight[2] = 0
    again = loss_surface.random_direction(bowl, 3)['weight']
    factors = torch.tensor([1., 10., 0.], dtype=torch.float64)
    torch.testing.assert_close(
        again, direction['weight'] * factors[:, None, None])
    other = loss_surface.random_direction(bowl, 4)['weight']
    assert not torch.allclose(other[0], again[0])


def test_a_plane_has_a_row_for_each_y(bowl):
    center = state(bowl)
    x, y = [loss_surface.random_direction(bowl, seed) for seed in (0, 1)]
    lengths = [-0.5, 0., 0.25]
    losses = loss_surface.plane(bowl, center, [x, y], lengths, bowl.loss)
    curvature = bowl.curvature.numpy()
    for row, step_y in zip(losses, lengths):
        for loss, step_x in zip(row, lengths):
            moved = (step_x * x['weight'] + step_y * y['weight']).numpy()
            expected = (curvature * (moved**2).sum((1, 2))).sum() / 2
            assert loss == pytest.approx(expected, abs=1e-12)
    assert torch.equal(bowl.weight, center['weight'])


@pytest.mark.parametrize('rise', [0.01, 0.5, 3.])
def test_the_width_of_a_bowl(bowl, rise):
    center = state(bowl)
    directions = [loss_surface.random_direction(bowl, s) for s in range(3)]
    found = loss_surface.width(bowl, center, directions, bowl.loss, rise,
                               limit=1.0, spacing=0.1)
    expected = math.sqrt(rise / bowl.risen_by_one_step)
    assert 0 < expected < 1
    assert len(found.radii) == 6 and found.open == 0
    np.testing.assert_allclose(found.radii, expected, atol=2e-3)
    assert found.mean == pytest.approx(expected, abs=2e-3)
    assert found.loss == 0
    assert torch.equal(bowl.weight, center['weight'])


def test_a_bowl_four_times_as_steep_is_half_as_wide(bowl):
    directions = [loss_surface.random_direction(bowl, 0)]

    def width():
        return loss_surface.width(bowl, state(bowl), directions, bowl.loss,
                                  0.5, limit=1.0, spacing=0.05).mean

    wide = width()
    bowl.curvature = bowl.curvature * 4
    assert width() == pytest.approx(wide / 2, rel=0.01)


def test_rays_that_do_not_rise_are_open(bowl):
    directions = [loss_surface.random_direction(bowl, 0)]
    found = loss_surface.width(bowl, state(bowl), directions, bowl.loss, 1e6,
                               limit=0.5, spacing=0.1)
    assert found.radii == [0.5, 0.5] and found.open == 2


@pytest.mark.parametrize('function, expected', [
    (abs, 0.35),
    (lambda r: math.inf if r > 0.35 else 0., 0.35),
    (lambda r: math.nan if r > 0.35 else 0., 0.35),
    (lambda r: math.sin(10 * r), math.asin(0.35) / 10),  # falls again
    (lambda r: 0.2, 1.0),
])
def test_the_first_crossing(function, expected):
    radius = loss_surface.rise_radius(function, 0.35, 1.0, 0.1)
    assert radius == pytest.approx(expected, abs=0.0065)


def test_the_mean_and_std_of_radii():
    found = Width(1., 1., [0.2, 0.4, 0.6, 1.0], 1.0)
    assert found.mean == pytest.approx(np.mean(found.radii))
    assert found.std == pytest.approx(np.std(found.radii, ddof=1))
    assert found.open == 1

"""The loss along lines and planes through weights, and a minimum's width.

Directions are random and filter-normalised (Li et al., Visualizing the Loss
Landscape of Neural Nets, NeurIPS 2018)::

    d_j <- d_j / ||d_j|| * ||w_j||        for each filter j of each tensor

because a network computes the same when a filter is scaled up and the next
batch norm scales it down: a step of fixed length would be a small change of
the one network and a large change of the other. A step of length 1 along
such a direction moves each filter by as much as its own norm. Biases and the
parameters of norms stay where they are.
"""
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    'LinePoint', 'Width', 'barrier', 'interpolate', 'line', 'plane',
    'random_direction', 'rise_radius', 'set_weights', 'step', 'width'
]

Weights = Mapping[str, Tensor]
Loss = Callable[[], float]
Track = Callable[..., Iterable[Any]]


def untracked(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    """Stands where nobody looks at the progress."""
    return items


@dataclass(frozen=True)
class LinePoint:
    """One point of a line.

    Attributes:
        t (float): 0 at the one end, 1 at the other.
        loss (float): The loss there; not finite where it overflows.
        metrics (Dict[str, float]): The validation metrics, or empty.
    """

    t: float
    loss: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Width:
    """How far from a minimum the loss has risen by a given amount.

    Attributes:
        loss (float): The loss at the centre: the depth.
        rise (float): The amount.
        radii (List[float]): A radius for each ray, in filter norms; ``limit``
            where the loss has not risen by that much until there.
        limit (float): As far as was looked.
    """

    loss: float
    rise: float
    radii: list[float]
    limit: float

    @property
    def mean(self) -> float:
        """The mean radius; a lower bound when rays are ``open``."""
        return sum(self.radii) / len(self.radii)

    @property
    def std(self) -> float:
        """The standard deviation of the radii over the rays."""
        mean = self.mean
        squares = sum((radius - mean)**2 for radius in self.radii)
        return math.sqrt(squares / max(1, len(self.radii) - 1))

    @property
    def open(self) -> int:
        """How many rays reached the limit."""
        return sum(radius >= self.limit for radius in self.radii)


@torch.no_grad()
def set_weights(model: nn.Module, weights: Weights) -> None:
    """Put values into a model's parameters and buffers, by their names."""
    state = model.state_dict()
    for name, value in weights.items():
        state[name].copy_(value)


def interpolate(a: Weights, b: Weights, t: float,
                parameters: Iterable[str]) -> dict[str, Tensor]:
    """``(1 - t) * a + t * b``, of the floating-point tensors.

    Args:
        a (Dict[str, Tensor]): State dict at t = 0.
        b (Dict[str, Tensor]): State dict at t = 1, with the same keys.
        t (float): Any number; beyond [0, 1] parameters are extrapolated, and
            buffers are those of the nearer end: an extrapolated variance may
            be negative.
        parameters (Iterable[str]): Which keys are parameters.

    Returns:
        Dict[str, Tensor]: The floating-point entries; at the ends bit-equal.
    """
    parameters = set(parameters)
    inside = min(max(t, 0.0), 1.0)
    return {
        name: torch.lerp(a[name], b[name],
                         t if name in parameters else inside)
        for name in a if a[name].is_floating_point()
    }


def line(model: nn.Module,
         a: Weights,
         b: Weights,
         ts: Sequence[float],
         loss: Loss,
         metrics: Callable[[], dict[str, float]] = dict,
         track: Track = untracked) -> list[LinePoint]:
    """The loss, and metrics, at points of the line from a to b.

    Args:
        model (nn.Module): Holds the weights while ``loss`` is called.
        a, b (Dict[str, Tensor]): State dicts.
        ts (Sequence[float]): The points.
        loss (Callable): The loss of the weights in the model.
        metrics (Callable): Their metrics by name. Defaults to none.
        track (Callable): Shows progress over an iterable.
    """
    parameters = [name for name, _ in model.named_parameters()]
    points = []
    for t in track(ts, description='line'):
        set_weights(model, interpolate(a, b, t, parameters))
        points.append(LinePoint(t, loss(), metrics()))
    return points


def barrier(points: Sequence[LinePoint]) -> float:
    """The highest rise of the loss above the straight line between the ends.

    Over the points in [0, 1], which must hold 0 and 1 (Frankle et al., Linear
    Mode Connectivity and the Lottery Ticket Hypothesis, ICML 2020, call it
    the error barrier). 0 means that nothing separates the ends.
    """
    inside = {point.t: point.loss for point in points if 0 <= point.t <= 1}
    start, stop = inside[0], inside[1]
    return max(loss - ((1 - t) * start + t * stop)
               for t, loss in inside.items())


def random_direction(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A filter-normalised random direction for the weights in a model.

    The draws depend on the seed and the tensors' shapes alone, so that equal
    seeds give comparable directions around several checkpoints.

    Args:
        model (nn.Module): Its trainable parameters with two dimensions or
            more get a direction; a filter is what one index of the first
            dimension selects.
        seed (int): Seed of the draws.

    Returns:
        Dict[str, Tensor]: A step of length 1 for each of these parameters.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _filter_normalised(
            torch.randn(param.shape, generator=generator), param.detach())
        for name, param in model.named_parameters()
        if param.requires_grad and param.ndim > 1
    }


def _filter_normalised(draws: Tensor, weight: Tensor) -> Tensor:
    draws = draws.to(weight)
    across = tuple(range(1, weight.ndim))
    size = torch.linalg.vector_norm(weight, dim=across, keepdim=True)
    drawn = torch.linalg.vector_norm(draws, dim=across, keepdim=True)
    return draws * (size / drawn.clamp_min(torch.finfo(drawn.dtype).tiny))


def step(center: Weights, *steps: tuple[float, Weights]) -> dict[str, Tensor]:
    """``center + sum of length * direction``, of the tensors that move."""
    moved: dict[str, Tensor] = {}
    for length, direction in steps:
        for name, vector in direction.items():
            moved[name] = moved.get(name, center[name]) + length * vector
    return moved


def plane(model: nn.Module,
          center: Weights,
          directions: Sequence[Weights],
          lengths: Sequence[float],
          loss: Loss,
          track: Track = untracked) -> list[list[float]]:
    """The loss on a square grid around a point.

    Args:
        model (nn.Module): Holds the weights while ``loss`` is called; the
            centre is back in it afterwards.
        center (Dict[str, Tensor]): State dict of the point.
        directions (Sequence): Two directions x and y.
        lengths (Sequence[float]): The steps along each.
        loss (Callable): The loss of the weights in the model.
        track (Callable): Shows progress over an iterable.

    Returns:
        List[List[float]]: A row for each step along y, in it a loss for each
        step along x.
    """
    x_direction, y_direction = directions
    grid = [(x, y) for y in lengths for x in lengths]
    losses = []
    for x, y in track(grid, description='plane'):
        set_weights(model,
                    step(center, (x, x_direction), (y, y_direction)))
        losses.append(loss())
    set_weights(model, center)
    columns = len(lengths)
    return [losses[i:i + columns] for i in range(0, len(losses), columns)]


def width(model: nn.Module,
          center: Weights,
          directions: Sequence[Weights],
          loss: Loss,
          rise: float,
          limit: float,
          spacing: float,
          track: Track = untracked) -> Width:
    """The distance at which the loss is higher than in the centre by ``rise``.

    Measured along each direction in both senses. On each of these rays it is
    the first crossing that a walk with steps of ``spacing`` meets, found by
    bisection and interpolation.

    Args:
        model (nn.Module): Holds the weights while ``loss`` is called; the
            centre is back in it afterwards.
        center (Dict[str, Tensor]): State dict of the point.
        directions (Sequence): The directions, of length 1 in the unit of the
            result.
        loss (Callable): The loss of the weights in the model.
        rise (float): The amount, in the unit of the loss.
        limit (float): As far as the walk goes.
        spacing (float): The length of its steps.
        track (Callable): Shows progress over an iterable.
    """
    set_weights(model, center)
    depth = loss()
    rays = [(sign, direction) for direction in directions for sign in (1, -1)]
    radii = []
    for sign, direction in track(rays, description='width'):

        def rise_at(radius: float, sign=sign, direction=direction) -> float:
            set_weights(model, step(center, (sign * radius, direction)))
            return loss() - depth

        radii.append(rise_radius(rise_at, rise, limit, spacing))
    set_weights(model, center)
    return Width(depth, rise, radii, limit)


def rise_radius(rise_at: Callable[[float], float],
                rise: float,
                limit: float,
                spacing: float,
                bisections: int = 4) -> float:
    """The first radius at which a function, 0 at 0, has risen by ``rise``.

    A value that is not a number counts as risen.

    Args:
        rise_at (Callable): The function of the radius.
        rise (float): How much, > 0.
        limit (float): The radius at which the search ends.
        spacing (float): A rise and fall within one such step is not seen.
        bisections (int): Halvings of the step that holds the crossing, before
            the straight line through its ends gives the result.

    Returns:
        float: The radius, or ``limit``.
    """
    inner, low = 0.0, 0.0
    for count in range(1, math.ceil(limit / spacing - 1e-9) + 1):
        outer = min(count * spacing, limit)
        high = rise_at(outer)
        if not high < rise:
            break
        inner, low = outer, high
    else:
        return limit
    for _ in range(bisections):
        middle = (inner + outer) / 2
        value = rise_at(middle)
        if value < rise:
            inner, low = middle, value
        else:
            outer, high = middle, value
    if not math.isfinite(high):
        return outer
    return inner + (outer - inner) * (rise - low) / (high - low)

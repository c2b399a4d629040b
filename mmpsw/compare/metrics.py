"""What is said about an arm: numbers from its validation curves.

A curve is the sequence m_1..m_E of an arm's validation metric, one arm has
one curve a seed. Where lower values are better, `higher=False`.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from mmpsw.compare.runs import Curve


class Estimate(NamedTuple):
    """A mean over seeds, and how far it can be trusted.

    Attributes:
        mean: The mean.
        std: The sample standard deviation; None for a single value.
    """

    mean: float
    std: float | None = None


class Difference(NamedTuple):
    """A mean paired difference with its confidence interval.

    Attributes:
        mean: The mean of arm - baseline.
        half_width: The interval is mean +- half_width; None for one pair,
            which says nothing about how the difference varies.
        n: The number of pairs.
    """

    mean: float
    half_width: float | None = None
    n: int = 1


class Match(NamedTuple):
    """When an arm is as good as the baseline ever is.

    Attributes:
        step: The first step at which it reaches the baseline's best.
        ratio: To the step at which the baseline itself does.
    """

    step: int
    ratio: float


def final(values: Sequence[float]) -> float:
    """m_E: what a user gets who trains to the end."""
    return values[-1]


def best(values: Sequence[float], higher: bool = True) -> float:
    """The best of m_1..m_E; points that are not a number do not count."""
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return math.nan
    return float(max(numbers) if higher else min(numbers))


def drop(values: Sequence[float], higher: bool = True) -> float | None:
    """The mean over points of max(0, m_{e-1} - m_e): how volatile it is.

    Returns:
        Zero for a curve that never gets worse; None for a single point.
    """
    if len(values) < 2:
        return None
    change = np.diff(values)
    return float(np.maximum(0.0, -change if higher else change).mean())


def area(values: Sequence[float]) -> float:
    """The mean of m_1..m_E: how good the model is whenever one stops."""
    return float(np.mean(values))


def epochs_to_match(curves: Sequence[Curve],
                    baseline: Sequence[Curve],
                    higher: bool = True) -> int | None:
    """The first step at which an arm reaches the baseline's best.

    Both are means over the seeds, point by point. Given the baseline itself,
    this is the step of its best point.

    Args:
        curves: The arm's (step, value) points, one curve a seed.
        baseline: The baseline's.
        higher: Whether higher values are better.

    Returns:
        The step, or None if the arm never reaches the baseline's best.
    """
    target = best([value for _, value in mean_curve(baseline)], higher)
    for step, value in mean_curve(curves):
        if value >= target if higher else value <= target:
            return step
    return None


def match(curves: Sequence[Curve],
          baseline: Sequence[Curve],
          higher: bool = True) -> Match | None:
    """:func:`epochs_to_match`, and its ratio to the baseline's own step."""
    step = epochs_to_match(curves, baseline, higher)
    own = epochs_to_match(baseline, baseline, higher)
    return None if step is None else Match(step, step / own)


def shared_steps(curves: Iterable[Curve]) -> set[int]:
    """The steps that all of the curves have."""
    return set.intersection(*({step for step, _ in curve}
                              for curve in curves))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds at each step that all the curves have."""
    by_step = [dict(curve) for curve in curves]
    return tuple((step, math.fsum(c[step] for c in by_step) / len(by_step))
                 for step in sorted(shared_steps(curves)))


def std_curve(curves: Sequence[Curve]) -> Curve:
    """The sample standard deviation at each step of :func:`mean_curve`.

    Zero for a single curve.
    """
    by_step = [dict(curve) for curve in curves]
    return tuple((step, over_seeds([c[step] for c in by_step]).std or 0.0)
                 for step in sorted(shared_steps(curves)))


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean and the sample standard deviation (n - 1)."""
    if len(values) == 1:
        return Estimate(values[0])
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)))


def paired_difference(arm: Sequence[float],
                      baseline: Sequence[float],
                      confidence: float = 0.95) -> Difference:
    """The mean difference over seeds, with Student's t interval.

    Args:
        arm: One value a seed.
        baseline: The baseline's values, of the same seeds in the same order.
        confidence: The interval's level.
    """
    if len(arm) != len(baseline):
        raise ValueError(
            f'The arm has {len(arm)} values and the baseline '
            f'{len(baseline)}, because they were not trained with the same '
            'seeds. A paired difference needs one of each per seed.')
    differences = [a - b for a, b in zip(arm, baseline, strict=True)]
    n = len(differences)
    mean, std = over_seeds(differences)
    if std is None:
        return Difference(mean)
    quantile = stats.t.ppf((1 + confidence) / 2, df=n - 1)
    return Difference(mean, float(quantile * std / math.sqrt(n)), n)


def ratio(arm: Sequence[float | None],
          baseline: Sequence[float | None]) -> float | None:
    """The arm's mean cost by the baseline's, for time and for memory.

    Args:
        arm: One value a run; None where none was logged.
        baseline: The baseline's, not necessarily as many.

    Returns:
        1 where they cost the same; None where a value is missing.
    """
    if None in arm or None in baseline:
        return None
    return over_seeds(arm).mean / over_seeds(baseline).mean

"""The three techniques: over which updates, and which statistic.

They share one shape, so that what differs between them is the mathematics::

    m = beta * m_prev + (1 - beta) * mean(last L of the period's T updates)

Reconstructed from the abstract of arXiv 1905.05774 and claims 1 to 5 of US
11,922,316 B2. PSWM's blend is inferred (claim 2 re-initialises the running
mean *to the stored previous mean*), so that three forms are offered.
"""
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from .numbers import is_number

__all__ = ['PSWA', 'PWALKS', 'PSWM', 'Technique', 'build_technique']


@dataclass(frozen=True)
class Technique:
    """``L = T`` and ``beta = 0``, where a technique says nothing else.

    Attributes:
        keeps_previous (bool): Whether ``m_prev`` is needed, which is a second
            copy of the weights.
    """

    keeps_previous: ClassVar[bool] = False

    def window(self, updates: int) -> int:
        """The window L, in updates, of a period of ``updates`` updates."""
        return updates

    def beta(self, samples: int, resamplings: int) -> float:
        """The weight of ``m_prev``.

        Args:
            samples (int): n, of this period.
            resamplings (int): e, those before this one.
        """
        return 0.0


@dataclass(frozen=True)
class PSWA(Technique):
    """Periodically Sampled Weight Averaging: the mean of the whole period."""


@dataclass(frozen=True)
class PWALKS(Technique):
    """Periodic Weight Averaging over the Last K Samples of the period.

    ``L = last`` (or ``last * T``, rounded, at least 1).

    Args:
        last (int or float): The window: a number of updates (int >= 1), or a
            fraction of the period's updates (float in (0, 1]).

    Raises:
        ValueError: ``last`` is outside of its range.
    """

    last: int | float

    def __post_init__(self):
        _check_last(self.last)

    def window(self, updates: int) -> int:
        return _window(self.last, updates)


@dataclass(frozen=True)
class PSWM(Technique):
    """Periodically Sampled Weight Momentum over successive means.

    ``beta = momentum``. In the first period, which has no ``m_prev``,
    ``m = mu``.

    Args:
        momentum (float or str): beta in [0, 1); or 'sample', where the stored
            mean counts as one more sample, beta = 1 / (n + 1); or 'polyak',
            the mean of all periods' means, beta = e / (e + 1) after e
            resamplings. Defaults to 'sample'.
        last (int or float, optional): The window, as in :class:`PWALKS`.
            None is the whole period.

    Raises:
        ValueError: ``momentum`` or ``last`` is outside of its range.
    """

    keeps_previous: ClassVar[bool] = True
    momentum: float | str = 'sample'
    last: int | float | None = None

    def __post_init__(self):
        _check_momentum(self.momentum)
        if self.last is not None:
            _check_last(self.last)

    def window(self, updates: int) -> int:
        return updates if self.last is None else _window(self.last, updates)

    def beta(self, samples: int, resamplings: int) -> float:
        if self.momentum == 'sample':
            return 1 / (samples + 1)
        if self.momentum == 'polyak':
            return resamplings / (resamplings + 1)
        return float(self.momentum)


TECHNIQUES = {cls.__name__: cls for cls in (PSWA, PWALKS, PSWM)}


def build_technique(type: str, **keys: Any) -> Technique:
    """Build a technique from its name and its keys.

    Args:
        type (str): 'PSWA', 'PWALKS' or 'PSWM'.
        **keys: ``last`` and ``momentum``, where the technique takes them.

    Raises:
        ValueError: The type is unknown, a key is not one of this technique,
            is missing, or is out of its range.
    """
    if type not in TECHNIQUES:
        raise ValueError(f'type={type!r} is unknown: use one of '
                         f'{", ".join(map(repr, TECHNIQUES))}.')
    cls = TECHNIQUES[type]
    for key, value in keys.items():
        if key not in _keys(cls):
            raise ValueError(_foreign_key(cls, key, value))
    if cls is PWALKS and 'last' not in keys:
        raise ValueError(
            'last is missing: PWALKS averages the last part of a period, and '
            'needs to know how much. Use last=0.25 for the last quarter, or '
            'last=50 for the last 50 updates.')
    return cls(**keys)


def _keys(cls: type[Technique]) -> list[str]:
    return [field.name for field in fields(cls)]


def _foreign_key(cls: type[Technique], key: str, value: Any) -> str:
    takers = [
        name for name, other in TECHNIQUES.items() if key in _keys(other)
    ]
    takes = (f'besides the common keys, {cls.__name__} takes '
             f'{", ".join(_keys(cls)) or "none"}')
    if not takers:
        return f'{key}={value!r} is not a key that mmpsw knows: {takes}.'
    return (f'{key}={value!r} is not a key of {cls.__name__}: {takes}. Remove '
            f'it, or use type={" or ".join(map(repr, takers))}.')


def _check_last(last: Any) -> None:
    if not (is_number(last, int) and last >= 1
            or is_number(last, float) and 0 < last <= 1):
        raise ValueError(
            f'last={last!r} is not a window: use a fraction of the period as '
            'a float in (0, 1], or a number of updates as an int >= 1.')


def _check_momentum(momentum: Any) -> None:
    if momentum in ('sample', 'polyak'):
        return
    if not is_number(momentum, int, float) or not 0 <= momentum < 1:
        raise ValueError(
            f'momentum={momentum!r} is not a momentum: use a number in '
            "[0, 1), 'sample' or 'polyak'.")


def _window(last: int | float, updates: int) -> int:
    if isinstance(last, int):
        return min(last, updates)
    return max(1, round(last * updates))

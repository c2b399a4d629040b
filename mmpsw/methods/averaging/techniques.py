"""The three techniques: over which updates, and which statistic.

They share one shape, so that what differs between them is the mathematics::

    m = beta * m_prev + (1 - beta) * mean(last L of the period's T updates)

Reconstructed from the abstract of arXiv 1905.05774 and claims 1 to 5 of US
11,922,316 B2. PSWM's blend is inferred (claim 2 re-initialises the running
mean *to the stored previous mean*), which is why it has three readings.
"""
from dataclasses import dataclass, fields
from typing import Any

__all__ = ['PSWA', 'PWALKS', 'PSWM', 'Technique', 'build_technique']


@dataclass(frozen=True)
class PSWA:
    """Periodically Sampled Weight Averaging: the mean of the whole period.

    ``L = T``, ``beta = 0``.
    """

    @property
    def keeps_previous(self) -> bool:
        """Whether ``m_prev`` is needed (a second copy of the weights)."""
        return False

    def window(self, updates: int) -> int:
        """The window L, in updates, of a period of ``updates`` updates."""
        return updates

    def beta(self, samples: int, resamplings: int) -> float:
        """The weight of ``m_prev``."""
        return 0.0


@dataclass(frozen=True)
class PWALKS:
    """Periodic Weight Averaging over the Last K Samples of the period.

    ``L = last`` (or ``last * T``, rounded, at least 1), ``beta = 0``.

    Args:
        last (int or float): The window: a number of updates (int >= 1), or a
            fraction of the period's updates (float in (0, 1]).

    Raises:
        ValueError: ``last`` is outside of its range.
    """

    last: int | float

    def __post_init__(self):
        _check_last('PWALKS', self.last)

    @property
    def keeps_previous(self) -> bool:
        """Whether ``m_prev`` is needed (a second copy of the weights)."""
        return False

    def window(self, updates: int) -> int:
        """The window L, in updates, of a period of ``updates`` updates."""
        return _window(self.last, updates)

    def beta(self, samples: int, resamplings: int) -> float:
        """The weight of ``m_prev``."""
        return 0.0


@dataclass(frozen=True)
class PSWM:
    """Periodically Sampled Weight Momentum over successive means.

    ``L = T`` (or ``last``), ``beta = momentum``. In the first period, which
    has no ``m_prev``, ``m = mu``.

    Args:
        momentum (float or str): beta in [0, 1); or 'sample', where the stored
            mean counts as one more sample, beta = 1 / (n + 1); or 'polyak',
            the mean of all periods' means, beta = e / (e + 1) after e
            resamplings.
        last (int or float, optional): The window, as in :class:`PWALKS`.
            None is the whole period.

    Raises:
        ValueError: ``momentum`` or ``last`` is outside of its range.
    """

    momentum: float | str = 0.5
    last: int | float | None = None

    def __post_init__(self):
        _check_momentum(self.momentum)
        if self.last is not None:
            _check_last('PSWM', self.last)

    @property
    def keeps_previous(self) -> bool:
        """Whether ``m_prev`` is needed (a second copy of the weights)."""
        return True

    def window(self, updates: int) -> int:
        """The window L, in updates, of a period of ``updates`` updates."""
        return updates if self.last is None else _window(self.last, updates)

    def beta(self, samples: int, resamplings: int) -> float:
        """The weight of ``m_prev``."""
        if self.momentum == 'sample':
            return 1 / (samples + 1)
        if self.momentum == 'polyak':
            return resamplings / (resamplings + 1)
        return float(self.momentum)


Technique = PSWA | PWALKS | PSWM
TECHNIQUES = {cls.__name__: cls for cls in (PSWA, PWALKS, PSWM)}


def build_technique(type: str, **keys: Any) -> Technique:
    """Build a technique from its name and its keys.

    Args:
        type (str): 'PSWA', 'PWALKS' or 'PSWM'.
        **keys: ``last`` and ``momentum``, where the technique takes them.

    Returns:
        PSWA, PWALKS or PSWM: The technique.

    Raises:
        ValueError: The type is unknown, a key is not one of this technique,
            is missing, or is out of its range.
    """
    if type not in TECHNIQUES:
        raise ValueError(f'psw.type={type!r} is unknown: use one of '
                         f'{", ".join(map(repr, TECHNIQUES))}.')
    cls = TECHNIQUES[type]
    known = [field.name for field in fields(cls)]
    for key in keys:
        if key not in known:
            raise ValueError(_foreign_key(type, key, keys[key], known))
    if cls is PWALKS and 'last' not in keys:
        raise ValueError(
            'psw.last is missing: PWALKS averages the last part of a period, '
            'and needs to know how much. Use last=0.25 for the last quarter, '
            'or last=50 for the last 50 updates.')
    return cls(**keys)


def _foreign_key(type: str, key: str, value: Any, known: list) -> str:
    takers = [
        name for name, cls in TECHNIQUES.items()
        if key in [field.name for field in fields(cls)]
    ]
    takes = f'besides the common keys, {type} takes ' + (
        ', '.join(known) if known else 'none')
    if takers:
        return (f'psw.{key}={value!r} is not a key of {type}: {takes}. '
                f'Remove it, or use type={" or ".join(map(repr, takers))}.')
    return f'psw.{key}={value!r} is not a key that mmpsw knows: {takes}.'


def _is_number(value: Any, kinds: tuple) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _check_last(name: str, last: Any) -> None:
    if _is_number(last, (int, )) and last >= 1:
        return
    if _is_number(last, (float, )) and 0 < last <= 1:
        return
    raise ValueError(
        f'psw.last={last!r} is not a window for {name}: use a fraction of '
        'the period as a float in (0, 1], or a number of updates as an '
        'int >= 1.')


def _check_momentum(momentum: Any) -> None:
    if momentum in ('sample', 'polyak'):
        return
    if _is_number(momentum, (int, float)) and 0 <= momentum < 1:
        return
    raise ValueError(
        f'psw.momentum={momentum!r} is not a momentum: use a number in '
        "[0, 1), 'sample' or 'polyak'.")


def _window(last: int | float, updates: int) -> int:
    if isinstance(last, int):
        return min(last, updates)
    return max(1, round(last * updates))

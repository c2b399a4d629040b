"""When: the periods, and the optimizer updates that they hold."""
from dataclasses import dataclass
from typing import NamedTuple

from .numbers import check_integer

__all__ = ['Place', 'Schedule']


class Place(NamedTuple):
    """The place of an iteration in its period.

    Attributes:
        update (int): The ordinal in its period, from 1, of the update to
            which the iteration belongs: it makes it, or gathers gradients.
        updates (int): How many updates the period holds (T).
        ends (bool): Whether the period ends with this iteration.
    """

    update: int
    updates: int
    ends: bool


@dataclass(frozen=True)
class Schedule:
    """Consecutive periods of iterations within [begin, end).

    Nothing is counted: the place of an iteration follows from its number
    alone, so that a schedule has no state to save. A period ends with its
    last *update*, which under gradient accumulation may come some iterations
    before its last iteration. The period that ``end`` or ``total`` cuts short
    is a shorter period.

    Args:
        period (int): Length of a period, in iterations.
        begin (int): Iterations before the first period. Defaults to 0.
        end (int, optional): The iteration at which the last period ends.
        accumulation (int): Iterations for an optimizer update. Defaults to 1.
        total (int, optional): Iterations of the whole run; the last of them
            updates even when the accumulation is not complete, as mmengine's
            ``OptimWrapper.should_update`` has it.

    Raises:
        ValueError: A value is out of its range, or a period would hold no
            update.
    """

    period: int
    begin: int = 0
    end: int | None = None
    accumulation: int = 1
    total: int | None = None

    def __post_init__(self):
        check_integer('period', self.period, 1)
        check_integer('begin', self.begin, 0)
        if self.end is not None:
            check_integer('end', self.end, 1)
            if self.begin >= self.end:
                raise ValueError(
                    f'begin={self.begin} is not before end={self.end}, so '
                    'that nothing would ever be resampled: use begin < end, '
                    'or end=None.')
        if self.period < self.accumulation:
            raise ValueError(
                f'A period of {self.period} iterations holds no optimizer '
                'update, because gradients are accumulated over '
                f'{self.accumulation} iterations: use a longer period, or '
                'accumulate over fewer.')

    @property
    def updates(self) -> tuple[int, int]:
        """How many updates a whole period holds, at least and at most."""
        fewest, rest = divmod(self.period, self.accumulation)
        return fewest, fewest + (rest > 0)

    def locate(self, iteration: int) -> Place | None:
        """The place of an iteration, counted from 1.

        Returns:
            Place or None: None outside of [begin, end), after ``total``, and
            between a period's last update and its end.
        """
        past = iteration - 1 - self.begin
        start = self.begin + past // self.period * self.period
        stop = self._cut(start + self.period)
        if past < 0 or iteration > stop:
            return None
        before = self._updates(start)
        updates = self._updates(stop) - before
        update = self._updates(iteration - 1) - before + 1
        if update > updates:
            return None
        done = self._updates(iteration) - before
        return Place(update, updates, ends=done == updates)

    def _cut(self, stop: int) -> int:
        return min(s for s in (stop, self.end, self.total) if s is not None)

    def _updates(self, iteration: int) -> int:
        updates, rest = divmod(iteration, self.accumulation)
        return updates + (rest > 0 and iteration == self.total)

"""What can be set, said and checked once."""
from dataclasses import dataclass

from .mean import WEIGHTS
from .numbers import check_integer, is_number
from .schedule import Schedule
from .techniques import Technique

__all__ = ['Settings', 'check_window']


@dataclass(frozen=True)
class Settings:
    """How weights are averaged, whatever trains them.

    Args:
        technique (PSWA, PWALKS or PSWM): The statistic.
        period (int): Length of a period, in iterations; a config's ``psw``
            may count epochs instead.
        begin (int): The first period begins after so many. Defaults to 0.
        end (int, optional): The last period ends with this one; after it the
            live weights are evaluated.
        weighting (str): 'uniform', or 'linear': later samples count more,
            ``mu <- mu + (w - mu) 2 / (n + 1)``. Defaults to 'uniform'.
        sample_prob (float): The probability q in (0, 1] with which an update
            in the window is sampled. Defaults to 1.
        seed (int): Seed of the generator that draws, which is the
            averaging's own, and saved. Defaults to 0.
        write_back (bool): False leaves the live weights alone, and m is what
            is evaluated. Defaults to True.
        evaluate (str): The weights that are evaluated and saved. With
            'resampled' they are the live weights, or m where
            ``write_back=False``. With 'average' they are the running mean of
            the period so far, and m after its end. Defaults to 'resampled'.

    Raises:
        ValueError: A value is out of its range.
    """

    technique: Technique
    period: int = 1
    begin: int = 0
    end: int | None = None
    weighting: str = 'uniform'
    sample_prob: float = 1.0
    seed: int = 0
    write_back: bool = True
    evaluate: str = 'resampled'

    def __post_init__(self):
        Schedule(self.period, self.begin, self.end)  # checks the three
        if (not is_number(self.sample_prob, int, float)
                or not 0 < self.sample_prob <= 1):
            raise ValueError(f'sample_prob={self.sample_prob!r} is not '
                             'possible: use a probability in (0, 1].')
        check_integer('seed', self.seed, 0)
        self.check_choice('weighting', *WEIGHTS)
        self.check_choice('write_back', True, False)
        self.check_choice('evaluate', 'resampled', 'average')

    def check_choice(self, key: str, *choices: object) -> None:
        """Raise ValueError unless a key has one of these values."""
        value = getattr(self, key)
        # 1 == True, but it is no bool.
        if not any(value == choice and type(value) is type(choice)
                   for choice in choices):
            raise ValueError(f'{key}={value!r} is not possible: use '
                             f'{" or ".join(map(repr, choices))}.')

    @property
    def shows_average(self) -> bool:
        """Whether other weights than the live ones are evaluated."""
        return not self.write_back or self.evaluate == 'average'


def check_window(technique: Technique, schedule: Schedule) -> None:
    """Raise ValueError for a window that is too long, or of one update."""
    last = getattr(technique, 'last', None)
    fewest, most = schedule.updates
    if isinstance(last, int) and last > fewest:
        raise ValueError(
            f'last={last} is longer than the period, which holds {fewest} '
            f'updates: use at most {fewest}, a fraction in (0, 1], or a '
            'longer period.')
    if technique.window(most) == 1 and technique.beta(1, 1) == 0:
        what, instead = 'The period holds', 'use a longer period.'
        if last is not None:
            what = f'last={last!r} is a window of'
            instead = ('use a larger last (1.0, a float, is the whole '
                       'period), or a longer period.')
        raise ValueError(
            f'{what} one update only, and the mean of one sample is that '
            f'sample, so that nothing would ever change: {instead}')

"""What puts an average into the model to validate it: one in a run, at most.

Each keeps the live weights while its average is in the model, and puts them
back. Of two, the second would keep the first one's average for live weights.
"""
from collections.abc import Iterable, Sequence

from mmengine.hooks import Hook

__all__ = ['SWAPPING', 'check_one_average', 'swapping_hooks']

# mmengine's, whose subclasses the peers are, and schedule-free training's.
SWAPPING = ('EMAHook', 'SwitchEMAHook', 'EpochAverageHook', 'LookaheadHook',
            'ScheduleFreeHook')


def swapping_hooks(hooks: Iterable[Hook]) -> list[str]:
    """The names of a run's hooks that do it; their subclasses do too."""
    return [type(hook).__name__ for hook in hooks
            if any(kind.__name__ in SWAPPING for kind in type(hook).__mro__)]


def check_one_average(names: Sequence[str]) -> None:
    """Raise ValueError where more than one average would be shown.

    Args:
        names (Sequence[str]): What shows one: hooks' names, or keys of
            ``psw``.
    """
    if len(names) > 1:
        raise ValueError(
            f'{names[0]} and {names[1]} cannot be used together, because both '
            'put their average into the model to validate it: leave out one '
            'of the methods, or remove it from custom_hooks.')

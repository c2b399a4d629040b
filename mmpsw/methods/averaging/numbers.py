"""What a number must be, said once."""
from typing import Any

__all__ = ['check_integer', 'is_number']


def is_number(value: Any, *kinds: type) -> bool:
    """Whether a value is of one of these kinds; a bool is no number."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def check_integer(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless a value is an integer >= ``least``."""
    if not is_number(value, int) or value < least:
        raise ValueError(f'{name}={value!r} is not possible: use an integer '
                         f'>= {least}.')

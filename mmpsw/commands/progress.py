"""The progress bars of the commands."""
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

__all__ = ['Bars']


class Bars(Progress):
    """A bar for each part of a work, with the time left, on stderr.

    Args:
        repeats (int): How many equal parts :meth:`parts` counts under one
            description.
    """

    def __init__(self, repeats: int = 1):
        super().__init__(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn('left'),
            console=Console(stderr=True))
        self._repeats = repeats
        self._parts: dict[str, TaskID] = {}

    def parts(self, items: Sequence[Any],
              description: str) -> Iterator[Any]:
        """Go through the items of one of the equal parts."""
        if description not in self._parts:
            self._parts[description] = self.add_task(
                escape(description), total=len(items) * self._repeats)
        for item in items:
            yield item
            self.advance(self._parts[description])

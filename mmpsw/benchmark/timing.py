"""Times several things in turn, so that they share the machine's moods."""
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

__all__ = ['Spread', 'interleaved', 'ratios', 'seconds']


class Spread(NamedTuple):
    """A median and its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> 'Spread':
        values = sorted(values)
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(
            values, n=4, method='inclusive')
        return cls(median, low, high)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """How long one call takes, on a GPU by its own clock."""
    if device.type != 'cuda':
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda.synchronize(device)
    events[0].record()
    call()
    events[1].record()
    torch.cuda.synchronize(device)
    return events[0].elapsed_time(events[1]) / 1000


def interleaved(calls: Mapping[str, Callable[[], Any]],
                rounds: Iterable[int],
                device: torch.device,
                prepare: Mapping[str, Callable[[], Any]] | None = None,
                warm_up: int = 3) -> dict[str, list[float]]:
    """Times all calls once a round, in an order that changes.

    Args:
        calls (Mapping[str, Callable]): What is timed, by name.
        rounds (Iterable[int]): Its length is the number of rounds.
        device (torch.device): Where they run.
        prepare (Mapping[str, Callable], optional): What runs before some
            calls, and is not timed.
        warm_up (int): Rounds before the first that counts.

    Returns:
        Dict[str, List[float]]: Seconds, by name, one for each round.
    """
    prepare = prepare or {}
    order = list(calls)
    shuffle = random.Random(0).shuffle

    def one_round() -> dict[str, float]:
        shuffle(order)
        times = {}
        for name in order:
            prepare.get(name, _nothing)()
            times[name] = seconds(calls[name], device)
        return times

    for _ in range(warm_up):
        one_round()
    results = [one_round() for _ in rounds]
    return {name: [times[name] for times in results] for name in calls}


def ratios(times: list[float], others: list[float]) -> Spread:
    """Of two calls' times, within each round."""
    return Spread.of(a / b for a, b in zip(times, others, strict=True))


def _nothing() -> None:
    pass

"""Counts what a computation costs; nothing here is timed."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ['Counted', 'counted', 'peak_memory']


class Counted(TorchDispatchMode):
    """Counts operations, and the bytes that they read, write and allocate.

    An operation reads its tensors, and writes those that its schema marks as
    changed and those that it makes; a copy does not read what it overwrites,
    and ``empty`` writes nothing. Views move nothing, and are no operations.

    Attributes:
        operations (List[str]): Their names, in order.
        bytes (int): Read and written.
        allocated (int): Bytes of the tensors that were made.
    """

    def __init__(self):
        super().__init__()
        self.operations: list[str] = []
        self.bytes = 0
        self.allocated = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition('::')[2]
        if func.is_view or name in ('detach', 'alias'):
            return result
        self.operations.append(name)
        given = set()
        named = [(kwargs or {}).get(argument.name)
                 for argument in func._schema.arguments[len(args):]]
        for argument, value in zip(func._schema.arguments, (*args, *named)):
            given.update(map(id, tree_leaves(value)))
            written = _is_written(argument)
            read = not (written and (argument.is_out or _overwrites(name)))
            if not _only_allocates(name):
                self.bytes += _size(value) * (written + read)
        made = _size([t for t in tree_leaves(result) if id(t) not in given])
        self.allocated += made
        if not _only_allocates(name):
            self.bytes += made
        return result


def counted(call: Callable[[], Any]) -> Counted:
    """What one call costs."""
    with Counted() as count:
        call()
    return count


def peak_memory(call: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that a call holds beyond those held before.

    It sees what an operation allocates and frees inside of itself, too.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU],
            profile_memory=True) as profile:
        call()
    held = peak = 0
    events = profile.profiler.kineto_results.events()
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == '[memory]':
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _overwrites(name: str) -> bool:
    return name in ('copy_', '_foreach_copy_', 'zero_', 'fill_',
                    '_foreach_zero_')


def _only_allocates(name: str) -> bool:
    return name.startswith(('empty', 'new_empty'))


def _size(value: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(value)
               if isinstance(leaf, Tensor) and leaf.device.type != 'meta')

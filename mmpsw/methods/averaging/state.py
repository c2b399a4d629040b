"""The means in a checkpoint: tensors under keys that survive a restart.

A part (the mean, m_prev, the live weights) is a list with a tensor for each
live tensor. It is saved as a dict with a tensor for each live tensor's key,
``param.3`` or ``buffer.0``: its place in the optimizer or among the buffers.
"""
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .mean import accumulators, copy_

__all__ = ['check_count', 'decode', 'encode']

_PARTS = ('mean', 'previous', 'live')
Part = dict[str, Tensor]


def encode(parts: dict[str, Sequence[Tensor]], live: Sequence[Tensor],
           known: Part) -> dict[str, Part]:
    """Give each part's tensors the keys of their live tensors.

    What has left the optimizer since the window began has no key, and is left
    out.

    Args:
        parts (Dict[str, Sequence[Tensor]]): Each aligned with ``live``.
        live (Sequence[Tensor]): The tensors that are averaged.
        known (Dict[str, Tensor]): All that can be, by their keys.
    """
    keys = {id(tensor): key for key, tensor in known.items()}
    return {
        name: {
            keys[id(owner)]: tensor
            for owner, tensor in zip(live, part) if id(owner) in keys
        }
        for name, part in parts.items()
    }


def decode(state: dict[str, Any], averaged: Sequence[Tensor],
           known: Part) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """The live tensors that a state is of, and copies of its parts.

    Args:
        state (dict): What was saved.
        averaged (Sequence[Tensor]): Those of a state without parts.
        known (Dict[str, Tensor]): All that can be averaged, by their keys.

    Raises:
        ValueError: The state is of other tensors.
    """
    saved = {name: state[name] for name in _PARTS if name in state}
    if not saved:
        return list(averaged), {}
    keys = list(next(iter(saved.values())))
    buffers = [key for key in known if key.startswith('buffer.')]
    for name, part in saved.items():
        _check_fit(name, part, known, [*keys, *buffers])
    live = [known[key] for key in keys]
    return live, {
        name: _loaded([part[key] for key in keys], live)
        for name, part in saved.items()
    }


def check_count(state: dict[str, Any], count: int) -> None:
    """Raise ValueError if the optimizer had another number of parameters."""
    if state['parameters'] != count:
        raise ValueError(_does_not_fit(
            'state', f'the optimizer had {state["parameters"]} parameters, '
            f'and has {count}'))


def _loaded(saved: list[Tensor], live: list[Tensor]) -> list[Tensor]:
    tensors = accumulators(live)
    copy_(tensors, saved)
    return tensors


def _check_fit(name: str, part: Part, known: Part, needed: list[str]) -> None:
    for key in [*part, *needed]:
        if (key not in part or key not in known
                or part[key].shape != known[key].shape):
            raise ValueError(_does_not_fit(
                name, f'{key} is missing on one side or has another shape'))


def _does_not_fit(name: str, reason: str) -> str:
    return (f'The saved {name} of the averaging does not fit this model, '
            f'because {reason}: resume with the model and the optimizer that '
            'were saved, or start the averaging anew.')

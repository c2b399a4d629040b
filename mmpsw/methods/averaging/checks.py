"""What can't be averaged, and what would do nothing: said beforehand."""
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .mean import ACCUMULATED_IN, WEIGHTS
from .numbers import check_integer, is_number
from .schedule import Schedule
from .techniques import Technique

__all__ = [
    'check_options', 'check_parameter', 'check_window', 'check_write_back'
]


def check_options(sample_prob: Any, seed: Any, optimizer_state: Any,
                  write_back: Any, weighting: Any, evaluate: Any) -> None:
    """Check the options that need no optimizer.

    Raises:
        ValueError: One is out of its range.
    """
    if not is_number(sample_prob, int, float) or not 0 < sample_prob <= 1:
        raise ValueError(f'sample_prob={sample_prob!r} is not possible: use a '
                         'probability in (0, 1].')
    check_integer('seed', seed, 0)
    if optimizer_state not in ('keep', 'reset'):
        raise ValueError(f'optimizer_state={optimizer_state!r} is not '
                         "possible: use 'keep' or 'reset'.")
    if weighting not in WEIGHTS:
        raise ValueError(f'weighting={weighting!r} is not possible: use '
                         f'{" or ".join(map(repr, WEIGHTS))}.')
    if evaluate not in ('resampled', 'average'):
        raise ValueError(f'evaluate={evaluate!r} is not possible: use '
                         "'resampled' or 'average'.")
    if not isinstance(write_back, bool):
        raise ValueError(f'write_back={write_back!r} is not possible: use '
                         'True or False.')
    if optimizer_state == 'reset' and not write_back:
        raise ValueError(
            "optimizer_state='reset' does nothing with write_back=False, "
            "because it happens at the writing back: use 'keep'.")


def check_window(technique: Technique, schedule: Schedule) -> None:
    """Raise ValueError for a window that is too long, or of one update."""
    last = getattr(technique, 'last', None)
    fewest, most = schedule.updates
    if isinstance(last, int) and last > fewest:
        raise ValueError(
            f'last={last} is longer than the period, which holds {fewest} '
            f'updates: use at most {fewest}, a fraction in (0, 1], or a '
            'longer period.')
    if technique.window(most) == 1 and technique.beta(1, 1, 0) == 0:
        what, instead = 'The period holds', 'use a longer period.'
        if last is not None:
            what = f'last={last!r} is a window of'
            instead = ('use a larger last (1.0, a float, is the whole '
                       'period), or a longer period.')
        raise ValueError(
            f'{what} one update only, and the mean of one sample is that '
            f'sample, so that nothing would ever change: {instead}')


def check_write_back(technique: Technique, write_back: bool) -> None:
    """Raise ValueError for a momentum that needs to be written back."""
    if technique.looks_ahead and not write_back:
        raise ValueError(
            "momentum='ahead' does nothing good with write_back=False, "
            'because it is a step beyond the mean from which to train on, '
            "and the mean itself is what to evaluate: use type='PSWA'.")


def check_parameter(param: Tensor, name: str) -> None:
    """Raise ValueError for a parameter that cannot be averaged."""
    if is_lazy(param):
        raise ValueError(
            f'Parameter {name} is not initialised yet: run one forward pass '
            'before the resampler is made.')
    if hasattr(param, 'to_local') or getattr(param, '_fsdp_flattened', False):
        raise ValueError(
            f'Parameter {name} is sharded over processes (a DTensor, or part '
            'of a FullyShardedDataParallel) and cannot be averaged, because '
            'each of them would decide for its own shard whether the mean is '
            'finite and is written back: use DistributedDataParallel.')
    if param.dtype not in ACCUMULATED_IN or param.layout != torch.strided:
        raise ValueError(
            f'Parameter {name} of {param.dtype} and {param.layout} cannot be '
            'averaged: use a dense floating-point or complex parameter, or '
            'freeze it.')

"""Batch-norm statistics of weights that no forward pass has seen yet."""
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ['recalibrate']


@torch.no_grad()
def recalibrate(model: nn.Module, forward: Callable[[Any], Any],
                batches: Iterable[Any],
                only: Collection[nn.Module] | None = None) -> int:
    """Recompute the running statistics of batch-norm layers.

    They are reset and become the plain average over the batches' statistics,
    as in ``torch.optim.swa_utils.update_bn``. Layers that are frozen (in
    evaluation mode although the model trains, as ``norm_eval`` does) keep
    theirs. Weights (those of a target network, too, that a loss moves),
    gradients, all other buffers, the modes of all modules
    and the random state are as before.

    Args:
        model (nn.Module): The model, as it is while training.
        forward (Callable): Runs the model on one batch, in training mode.
        batches (Iterable): The batches. No more than these are read.
        only (Collection[nn.Module], optional): Other layers than these keep
            their statistics. Defaults to None, all are recomputed.

    Returns:
        int: How many layers were recalibrated; without any, no batch is read.

    Raises:
        ValueError: ``batches`` is empty although there are such layers.
    """
    layers = [
        module for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training
        and module.running_mean is not None
        and (only is None or module in only)
    ]
    if not layers:
        return 0
    with _cumulative(model, layers), _random_state_kept():
        none = True
        for batch in batches:
            none = False
            forward(batch)
        if none:
            raise ValueError(
                'There is no batch to recalibrate batch norm with: give at '
                'least one.')
    return len(layers)


@contextmanager
def _cumulative(model: nn.Module, layers: list[_BatchNorm]) -> Iterator[None]:
    """Statistics that start at zero; those from before if it fails.

    All other buffers (counts, memories) are as before in any case.
    """
    momenta = [layer.momentum for layer in layers]
    before = [(module, name, buffer, buffer.clone())
              for module in model.modules()
              for name, buffer in module.named_buffers(recurse=False)]
    targets = [(param, param.clone()) for param in model.parameters()
               if not param.requires_grad]
    kept: set[nn.Module] = set()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's way to say: a plain average
        yield
        kept.update(layers)
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum
        for module, name, buffer, value in before:
            if module not in kept or not name.startswith('running_'):
                module._buffers[name] = buffer.copy_(value)
        for param, value in targets:
            param.copy_(value)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(
                [torch.cuda.current_device()]
                if torch.cuda.is_available() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)

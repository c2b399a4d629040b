"""The buffers of a model that are averaged, and where they are kept."""
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

__all__ = ['OwnedBuffers', 'owned_buffers']


class OwnedBuffers:
    """Buffers, each with the module that holds it under a name."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._places: list[tuple[dict[str, Tensor | None], str]] = []

    def add(self, module: nn.Module, name: str) -> None:
        """Add a buffer of a module."""
        self.tensors.append(module._buffers[name])
        self._places.append((module._buffers, name))

    @torch.no_grad()
    def put_back(self) -> None:
        """Make them the model's again, with the values that it has.

        PreciseBNHook, for one, sets new tensors in their place, so that those
        which are averaged would be nobody's.
        """
        for tensor, (held, name) in zip(self.tensors, self._places):
            now = held.get(name)
            if now is not tensor and now is not None:
                if now.shape == tensor.shape:
                    held[name] = tensor.copy_(now)


def owned_buffers(
        model: nn.Module,
        wrappers: Sequence[tuple[str, Any]]) -> dict[str, OwnedBuffers]:
    """Each OptimWrapper's buffers: those of the modules that it optimizes.

    A module without parameters of its own belongs to the wrapper of the first
    parameter in the smallest enclosing module that has one. The unit vectors
    of a spectral norm are left out: their mean is none, so that the weight
    would be scaled wrongly, and the next forward pass fits them to the mean.

    Args:
        model (nn.Module): The model.
        wrappers (Sequence[Tuple[str, OptimWrapper]]): With their names.

    Returns:
        Dict[str, OwnedBuffers]: By the wrappers' names.
    """
    owner = {
        id(param): name
        for name, wrapper in wrappers
        for group in wrapper.optimizer.param_groups
        for param in group['params']
    }
    owned = {name: OwnedBuffers() for name, _ in wrappers}
    for path, module in model.named_modules():
        names = _averaged(module)
        if names:
            wrapper = next(_owners(model, path, owner), None)
            if wrapper is not None:
                for name in names:
                    owned[wrapper].add(module, name)
    return owned


def _averaged(module: nn.Module) -> list[str]:
    """The names of a module's buffers, without those of a power iteration."""
    if isinstance(module, _SpectralNorm):
        return []
    vectors = [
        hook.name + end for hook in module._forward_pre_hooks.values()
        if isinstance(hook, SpectralNorm) for end in ('_u', '_v')
    ]
    return [name for name, _ in module.named_buffers(recurse=False)
            if name not in vectors]


def _owners(model: nn.Module, path: str,
            owner: dict[int, str]) -> Iterator[str]:
    """Names of the wrappers of a module's parameters, nearest first."""
    parts = path.split('.') if path else []
    for depth in range(len(parts), -1, -1):
        module = model.get_submodule('.'.join(parts[:depth]))
        for param in module.parameters():
            if id(param) in owner:
                yield owner[id(param)]

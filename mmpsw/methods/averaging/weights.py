"""What is averaged: found anew at each use, and known by its names."""
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from .mean import ACCUMULATED_IN, accumulators, copy_

__all__ = ['Weights', 'running_statistics']

Place = tuple[nn.Module, str]


def running_statistics(model: nn.Module) -> dict[str, Place]:
    """The running means and variances of normalisation layers.

    They belong to the weights as no other buffer does. A memory, a count, an
    observer or the vectors of a spectral norm mean nothing when averaged.

    Args:
        model (nn.Module): Any model.

    Returns:
        Dict[str, Tuple[nn.Module, str]]: By their names in the model, the
        layer that holds each, and what it calls it.
    """
    return {
        f'{path}.{name}' if path else name: (module, name)
        for path, module in model.named_modules()
        if {'running_mean', 'running_var'} <= module._buffers.keys()
        for name in ('running_mean', 'running_var')
        if _is_statistic(module._buffers[name])
    }


def _is_statistic(buffer: Tensor | None) -> bool:
    """Not one of a quantised layer, or of one that no batch has met yet."""
    return (buffer is not None and not is_lazy(buffer)
            and buffer.dtype in ACCUMULATED_IN)


class Weights:
    """An optimizer's trainable parameters, then the running statistics.

    Sharded parameters (DTensors of ``fully_shard``) are here as the shards of
    this process.

    Args:
        optimizer (Optimizer): Whose parameters these are.
        names (Mapping[Tensor, str]): Their names; others are numbered, as
            ``param.3``.
        statistics (Mapping[str, Tuple[nn.Module, str]]): As of
            :func:`running_statistics`.

    Attributes:
        params (List[Tensor]): Those that required a gradient, or had just
            been updated, when :meth:`follow` last looked.
        updated (Set[Tensor]): What the caller knows to have been updated, as
            a model may freeze it again before the iteration ends.

    Raises:
        ValueError: There is no such parameter, or one cannot be averaged.
    """

    def __init__(self, optimizer: Optimizer, names: Mapping[Tensor, str],
                 statistics: Mapping[str, Place]):
        self.optimizer = optimizer
        self.names = names
        self.statistics = dict(statistics)
        self.updated: set[Tensor] = set()
        self.params = self._trainable()
        if not self.params:
            raise ValueError(
                'There is nothing to average, because the optimizer has no '
                'parameter that requires a gradient: unfreeze some, or train '
                'without averaging.')

    @property
    def count(self) -> int:
        """How many parameters the optimizer has, trainable or not."""
        return sum(len(group['params'])
                   for group in self.optimizer.param_groups)

    @property
    def sharded(self) -> bool:
        """Whether processes hold shards of the parameters."""
        return any(map(_is_sharded, self.params))

    def follow(self) -> bool:
        """Take what is trainable now; whether these are others."""
        before, self.params = self.params, self._trainable()
        return list(map(id, before)) != list(map(id, self.params))

    @torch.no_grad()
    def tensors(self) -> list[Tensor]:
        """The live tensors, of now."""
        # A sharding may replace its shards, and a hook may give a layer
        # other buffers.
        params = [p.to_local() if _is_sharded(p) else p for p in self.params]
        return params + [module._buffers[name]
                         for module, name in self.statistics.values()]

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Tensors that are in the order of :meth:`tensors`, by their names.

        What has left the optimizer is left out. Shards become DTensors.
        """
        params = {id(p): name for name, p in self._parameters().items()}
        held = {params[id(p)]: _resharded(tensor, p)
                for p, tensor in zip(self.params, tensors) if id(p) in params}
        return {**held, **dict(zip(self.statistics,
                                   tensors[len(self.params):]))}

    def load(self, saved: Mapping[str, Mapping[str, Tensor]]
             ) -> dict[str, list[Tensor]]:
        """Copies of parts that :meth:`named` made, in its order.

        The parameters that are averaged are those of the parts from now on,
        whatever is frozen now: what is frozen and unfrozen during a run
        becomes so again after the loading.

        Raises:
            ValueError: They are of other tensors.
        """
        if not saved:
            return {}
        known = self._parameters()
        held = next(iter(saved.values()))
        for name, part in saved.items():
            _check_fit(name, part, held, known, self.statistics)
        self.params = [known[key] for key in held if key in known]
        keys = [key for key in held if key in known] + list(self.statistics)
        loaded = {}
        for name, part in saved.items():
            loaded[name] = accumulators(self.tensors())
            copy_(loaded[name], [_local(part[key]) for key in keys])
        return loaded

    def reduced(self, numbers: Sequence[float], op: str) -> list[float]:
        """Reduce numbers over the processes that hold shards of one tensor.

        One collective for each mesh and dimension of it.

        Args:
            numbers (Sequence[float]): One for each of :meth:`tensors`.
            op (str): 'MAX' or 'SUM'.
        """
        numbers, places = list(numbers), {}
        for i, param in enumerate(self.params):
            if _is_sharded(param):
                for dim, placement in enumerate(param.placements):
                    if not placement.is_replicate():
                        places.setdefault((param.device_mesh, dim),
                                          []).append(i)
        for (mesh, dim), indices in places.items():
            values = torch.tensor([numbers[i] for i in indices],
                                  dtype=torch.float64, device=mesh.device_type)
            dist.all_reduce(values, getattr(dist.ReduceOp, op),
                            group=mesh.get_group(dim))
            for i, value in zip(indices, values.tolist()):
                numbers[i] = value
        return numbers

    def _trainable(self) -> list[Tensor]:
        trainable = {name: param for name, param in self._parameters().items()
                     if param.requires_grad or param in self.updated}
        for name, param in trainable.items():
            _check(param, name)
        return list(trainable.values())

    def _parameters(self) -> dict[str, Tensor]:
        params = [param for group in self.optimizer.param_groups
                  for param in group['params']]
        return {self.names.get(param, f'param.{i}'): param
                for i, param in enumerate(params)}


def _check_fit(name: str, part: Mapping[str, Tensor],
               held: Mapping[str, Tensor], known: Mapping[str, Tensor],
               statistics: Mapping[str, Place]) -> None:
    shapes = {key: param.shape for key, param in known.items()}
    shapes.update((key, module._buffers[own].shape)
                  for key, (module, own) in statistics.items())
    for key in [*part, *held, *statistics]:
        if (key not in part or key not in shapes
                or part[key].shape != shapes[key]):
            raise ValueError(
                f'The saved {name} of the averaging does not fit this model, '
                f"because '{key}' is missing on one side or has another "
                'shape: resume with the model and the optimizer that were '
                'saved, or start from the weights alone.')


def _check(param: Tensor, name: str) -> None:
    if is_lazy(param) or param.is_meta:
        raise ValueError(
            f'Parameter {name} is not initialised yet: run one forward pass '
            'before the resampler is made.')
    if getattr(param, '_fsdp_flattened', False):
        raise ValueError(
            f'Parameter {name} is part of a FullyShardedDataParallel and '
            'cannot be averaged, because that keeps flat copies of its own: '
            'use fully_shard (FSDP2), or DistributedDataParallel.')
    if _is_sharded(param) and any(p.is_partial() for p in param.placements):
        raise ValueError(
            f'Parameter {name} is a DTensor with a partial placement and '
            'cannot be averaged, because no process knows its values: '
            'redistribute it.')
    if param.dtype not in ACCUMULATED_IN or param.layout != torch.strided:
        raise ValueError(
            f'Parameter {name} of {param.dtype} and {param.layout} cannot be '
            'averaged: use a dense floating-point or complex parameter, or '
            'freeze it.')


def _is_sharded(tensor: Any) -> bool:
    return hasattr(tensor, 'to_local')


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if _is_sharded(tensor) else tensor


def _resharded(shard: Tensor, like: Tensor) -> Tensor:
    """A shard as a DTensor, as the parameter is one."""
    if not _is_sharded(like):
        return shard
    return type(like).from_local(
        shard, like.device_mesh, like.placements, run_check=False,
        shape=like.shape, stride=like.stride())

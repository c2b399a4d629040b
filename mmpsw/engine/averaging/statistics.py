"""Which of several optimizers owns which running statistics."""
from collections.abc import Mapping

from torch import nn
from torch.optim import Optimizer

from mmpsw.methods.averaging import running_statistics

__all__ = ['owned_statistics']

Place = tuple[nn.Module, str]


def owned_statistics(
        model: nn.Module, optimizers: Mapping[str, Optimizer]
) -> dict[str, dict[str, Place]]:
    """Each optimizer's running statistics: of the layers that it optimizes.

    A layer without parameters of its own belongs to the optimizer of the
    first parameter in the smallest enclosing module that has one.

    Args:
        model (nn.Module): The model.
        optimizers (Mapping[str, Optimizer]): By their names.

    Returns:
        Dict[str, Dict[str, Tuple[nn.Module, str]]]: By the optimizers' names;
        see :func:`running_statistics`.
    """
    owner = {
        id(param): name
        for name, optimizer in optimizers.items()
        for group in optimizer.param_groups
        for param in group['params']
    }
    owned: dict[str, dict[str, Place]] = {name: {} for name in optimizers}
    for key, place in running_statistics(model).items():
        path = key.split('.')[:-1]
        for depth in range(len(path), -1, -1):
            module = model.get_submodule('.'.join(path[:depth]))
            owners = [owner[id(param)] for param in module.parameters()
                      if id(param) in owner]
            if owners:
                owned[owners[0]][key] = place
                break
    return owned

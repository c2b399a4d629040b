"""Weights that a checkpoint of psw holds beside its ``state_dict``."""
from typing import Any

from torch import Tensor

from mmpsw import checkpoints
from mmpsw.runtime.resume import LIVE

__all__ = ['PARTS', 'weights_of']

# Where training continues, the open period's mean, the last period's mean.
PARTS = ('live', 'mean', 'previous')


def weights_of(path: str, content: Any, part: str | None) -> dict[str, Tensor]:
    """A whole ``state_dict`` with one part's weights in it.

    Args:
        path (str): Where it was read, for messages.
        content (Any): What was read.
        part (str, optional): One of PARTS; the ``state_dict`` by default.

    Raises:
        ValueError: It holds no such weights.
    """
    weights = dict(checkpoints.weights(path, content))
    if part is None:
        return weights
    saved = content.get('psw') or {}
    held = {name: {key: tensor for state in saved.values()
                   for key, tensor in state.get(name, {}).items()}
            for name in PARTS[1:]}
    held['live'] = content.get(LIVE) or (weights if saved else {})
    if not held[part]:
        others = [f"'{name}'" for name in PARTS if held[name]]
        raise ValueError(
            f"'{path}' has no '{part}' weights beside its state_dict, because "
            'it was saved by another method, or at another time; it holds '
            f'{" and ".join(others) or "none"}')
    names = weights.keys() & held[part].keys()
    return {**weights, **{
        name: held[part][name].to(weights[name].dtype) for name in names}}

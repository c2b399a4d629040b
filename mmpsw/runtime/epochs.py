"""How long an epoch is."""
import math

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.runner import BaseLoop

__all__ = ['epoch_length']


def epoch_length(loop: BaseLoop) -> int | None:
    """Iterations in one pass of the data set's length, or None.

    An InfiniteSampler's length is that of the whole data set, which all
    processes share.
    """
    loader = loop.dataloader
    try:
        if isinstance(loader.sampler, InfiniteSampler):
            per_iteration = (loader.batch_size or 1) * get_world_size()
            return math.ceil(len(loader.dataset) / per_iteration)
        return len(loader)
    except TypeError:
        return None

"""How long an epoch is."""
import math

from mmengine.dist import get_world_size
from mmengine.runner import BaseLoop

__all__ = ['epoch_length']

# Samplers without an end, of mmengine and of mmdet: their length is that of
# the whole data set, which all processes share.
_ENDLESS = {'InfiniteSampler', 'MultiSourceSampler'}


def epoch_length(loop: BaseLoop) -> int | None:
    """Iterations in one pass of the data set's length, or None."""
    loader = loop.dataloader
    # With a batch sampler, a loader's own sampler is torch's default.
    batches = getattr(loader, 'batch_sampler', None)
    sampler = getattr(batches, 'sampler', None) or getattr(
        loader, 'sampler', None)
    try:
        if _ENDLESS & {kind.__name__ for kind in type(sampler).__mro__}:
            size = getattr(loader, 'batch_size', None) or getattr(
                batches, 'batch_size', 1)
            return math.ceil(len(loader.dataset) / (size * get_world_size()))
        return len(loader)
    except TypeError:
        return None

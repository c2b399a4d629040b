"""What all processes of a distributed training do together."""
from mmengine.dist import all_reduce_params
from torch import Tensor

__all__ = ['mean_over_ranks']


def mean_over_ranks(tensors: list[Tensor]) -> None:
    """Average over the processes, in place; a single one has its own."""
    all_reduce_params(tensors, op='mean')

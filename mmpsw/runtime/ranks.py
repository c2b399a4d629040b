"""What all processes of a distributed training do together."""
import torch
from mmengine.dist import (
    all_gather,
    all_reduce,
    all_reduce_params,
    get_world_size,
)
from torch import Tensor

__all__ = ['check_same_weights', 'mean_over_ranks']

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def mean_over_ranks(tensors: list[Tensor]) -> None:
    """Average over the processes, in place; a single one has its own."""
    all_reduce_params(tensors, op='mean')


def check_same_weights(tensors: dict[str, Tensor], iteration: int) -> None:
    """Compare tensors over the processes, by one small all-reduce.

    To be called by all of them. Each tensor is read once, and weighs 16 bytes
    on the network.

    Args:
        tensors (Dict[str, Tensor]): Floating-point or complex tensors, of the
            same names and in the same order everywhere.
        iteration (int): For the message.

    Raises:
        RuntimeError: Some differ, in any bit. All processes raise it alike,
            so that none waits for the others.
    """
    if get_world_size() == 1 or not tensors:
        return
    sums = _checksums(list(tensors.values()))
    # ~x falls where x rises, and does not overflow as -x does.
    extremes = torch.cat([sums, ~sums])
    all_reduce(extremes, op='max')
    largest, smallest = extremes[:len(sums)], ~extremes[len(sums):]
    differ = (largest != smallest).nonzero().flatten().tolist()
    if differ:
        raise _disagreement(list(tensors), differ, sums, iteration)


def _disagreement(names: list[str], differ: list[int], sums: Tensor,
                  iteration: int) -> RuntimeError:
    first = differ[0]
    of_ranks = [int(s[first]) for s in all_gather(sums)]
    others = [rank for rank, s in enumerate(of_ranks) if s != of_ranks[0]]
    return RuntimeError(
        f'The processes do not hold the same weights after iteration '
        f'{iteration}: {names[first]} of rank '
        f'{", ".join(map(str, others))} differs from that of rank 0 (the '
        f'first of {len(differ)} that differ, of {len(names)}). Something '
        'changed it on some processes only, such as code for one rank, a '
        'gradient that is not reduced over them, or faulty memory: mend '
        'that, and resume from a checkpoint from before.')


@torch.no_grad()
def _checksums(tensors: list[Tensor]) -> Tensor:
    """The sum of each tensor's bits, as integers.

    A sum of integers does not depend on its order, so that equal tensors
    have equal sums on unequal devices too.
    """
    device = tensors[0].device
    sums = [_bits(tensor).sum(dtype=torch.int64) for tensor in tensors]
    return torch.stack([total.to(device) for total in sums])


def _bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.dtype == torch.complex128:
        tensor = torch.view_as_real(tensor)
    return tensor.view(_BITS[tensor.element_size()])

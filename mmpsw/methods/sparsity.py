"""Masks over weights that change while training: semi-pruning.

Li et al. 2021, arXiv 2103.16013. A mask is a bool tensor of a weight's shape,
False where the weight is held at zero. Thresholds and norms are of output
filters: of all of a weight but its first dimension.
"""
import math

import torch
from torch import Tensor

__all__ = ['drop', 'grow', 'hoyer', 'next_ratio', 'random_mask']


def random_mask(weight: Tensor, share: float,
                generator: torch.Generator) -> Tensor:
    """``ceil(share n)`` of the n numbers are masked, drawn at random."""
    order = torch.randperm(weight.numel(), generator=generator, device='cpu')
    mask = torch.ones(weight.numel(), dtype=torch.bool, device='cpu')
    mask[order[:math.ceil(share * weight.numel())]] = False
    return mask.view(weight.shape).to(weight.device)


def drop(weight: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """A mask without those below ``fraction mean|w|`` over the filter's own.

    The mean is over what is not masked.
    """
    inner = tuple(range(1, weight.dim()))
    size = weight.abs() * mask
    alive = mask.sum(inner, keepdim=True).clamp_(min=1)
    return mask & (size >= fraction * size.sum(inner, keepdim=True) / alive)


def grow(gradient: Tensor, mask: Tensor, count: int) -> Tensor:
    """A mask with ``count`` more: those with the largest gradient.

    By its magnitude, over each filter's L2 norm. The official code takes the
    largest signed value, although its description, the helper beside it and
    RigL (arXiv 1911.11134) take the magnitude: a weight whose gradient is as
    large but negative reduces the loss as much.
    """
    inner = tuple(range(1, gradient.dim()))
    norm = torch.linalg.vector_norm(gradient, dim=inner, keepdim=True)
    score = (gradient.abs() / norm.clamp_(min=1e-30)).masked_fill_(mask, -1)
    grown = mask.flatten()
    masked = grown.numel() - int(grown.sum())
    best = score.flatten().topk(min(count, masked)).indices
    return grown.index_fill(0, best, True).view(mask.shape)


def next_ratio(zeros: float, target: float, fraction: float,
               change: float = 0.1) -> float:
    """How many to grow for each that is dropped: threshold adaptation.

    Args:
        zeros (float): The present share of zeros.
        target (float): Where it should go.
        fraction (float): That of :func:`drop`: near the target is within
            half of it.
        change (float): Defaults to 0.1.
    """
    below = zeros < target * (1 - fraction / 2)
    return (1 - change if below else 1 + change) * zeros / target


def hoyer(weight: Tensor) -> float:
    """Hoyer's sparsity, from 0 (all equal) to 1 (one number is not zero).

    ``(sqrt(n) - ||w||_1 / ||w||_2) / (sqrt(n) - 1)`` of each filter of n
    numbers, and the mean over those that are not all zero. It is 0 where n is
    1, and 1 where all are zero.
    """
    rows = weight.detach().flatten(1).double()
    rows = rows[rows.any(1)]
    if not len(rows):
        return 1.
    if rows.shape[1] == 1:
        return 0.
    root = math.sqrt(rows.shape[1])
    ratio = rows.abs().sum(1) / torch.linalg.vector_norm(rows, dim=1)
    return ((root - ratio) / (root - 1)).mean().item()

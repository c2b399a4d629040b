"""Pruning activation gradients (Ye et al. 2020, arXiv 1908.00173).

Reconstructed: the paper's body was not available to us, only its abstract.

    tau = c mean|g|
    g  <-  g               where |g| >= tau
           sign(g) tau     elsewhere, with the probability |g| / tau
           0               elsewhere, else

The expectation of what is left is g itself, for every tau. What one pays is
variance. For a pruning rate p, c is such that a share p of normal gradients
lies below tau:

    sigma = sqrt(pi / 2) mean|g|,   tau = Phi^-1((1 + p) / 2) sigma

Some of those are lifted to tau, so that fewer than p become zero: .380, .451,
.540, .603, .691 at p = .7, .8, .9, .95, .99; more where the tails are heavier.
"""
import math
from statistics import NormalDist

import torch
from torch import Tensor

__all__ = ['Pruner', 'factor_of_rate', 'prune']


def factor_of_rate(rate: float) -> float:
    """c, so that a share ``rate`` of normal gradients lies below tau.

    Raises:
        ValueError: ``rate`` is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f'rate={rate!r} is not possible, because it is a '
                         'share of the gradients: use a number in [0, 1).')
    return NormalDist().inv_cdf((1 + rate) / 2) * math.sqrt(math.pi / 2)


def prune(grad: Tensor, tau: float, generator: torch.Generator) -> Tensor:
    """Set small gradients to zero or to tau, at random and without bias.

    What is not finite stays so, for a gradient scaler to see it.

    Args:
        grad (Tensor): Floating-point, of any shape. It is left as it is.
        tau (float): Not negative, finite. 0 changes nothing.
        generator (torch.Generator): Of the same device.

    Returns:
        Tensor: Of the same shape and dtype; ``grad`` itself if tau is 0.
    """
    tau = rounded(tau, grad.dtype)
    if tau == 0:
        return grad
    # Half precision has too few numbers in [0, 1) to draw from.
    wide = torch.promote_types(grad.dtype, torch.float32)
    draw = torch.empty_like(grad, dtype=wide).uniform_(
        0, tau, generator=generator)
    size = grad.abs()
    # A product with 0 and 1 takes a tenth of what masked_fill_ does.
    kept = draw.lt_(size)
    return size.clamp_(min=tau).copysign_(grad).mul_(kept)


def rounded(tau: float, dtype: torch.dtype) -> float:
    """Tau as a gradient can hold it, so that the draw is of the same."""
    tau = min(tau, torch.finfo(dtype).max)
    return torch.tensor(tau, dtype=dtype).item()


class Pruner:
    """Prunes the gradients of some layers, and adds up what it sees.

    By torch's operations: 7 to prune a gradient, 2 for its mean and 3 for its
    zeros. On a GPU :class:`.kernel.KernelPruner` is one for all of it.

    Args:
        layers (int): How many.
        device (torch.device): That of the gradients.
    """

    def __init__(self, layers: int, device: torch.device):
        self.generator = torch.Generator(device)
        self.table = torch.zeros(layers, 2, device=device)
        self.rows = [row.unbind() for row in self.table]

    def begin(self, seed: int) -> None:
        """Begin an iteration's draws, by a seed of 32 bits."""
        self.generator.manual_seed(seed)

    def prune(self, grad: Tensor, tau: float, layer: int,
              zeros: bool) -> Tensor:
        """:func:`prune`; adds ``|grad|``, and what is zero then if asked."""
        wide = torch.promote_types(grad.dtype, torch.float32)
        self.rows[layer][0].add_(
            torch.linalg.vector_norm(grad, 1, dtype=wide))
        grad = prune(grad, tau, self.generator)
        if zeros:
            self.count(grad, layer)
        return grad

    def count(self, grad: Tensor, layer: int) -> None:
        """Adds the number of zeros."""
        self.rows[layer][1].add_((grad == 0).sum())

    def take(self) -> Tensor:
        """The sums of ``|grad|`` and of zeros, (layers, 2), since last."""
        sums = self.table.clone()
        self.table.zero_()
        return sums

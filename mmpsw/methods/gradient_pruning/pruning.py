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

__all__ = ['factor_of_rate', 'factor_of_sparsity', 'prune']


def factor_of_rate(rate: float) -> float:
    """c, so that a share ``rate`` of normal gradients lies below tau.

    Raises:
        ValueError: ``rate`` is not in [0, 1).
    """
    _check_share('rate', rate)
    return NormalDist().inv_cdf((1 + rate) / 2) * math.sqrt(math.pi / 2)


def factor_of_sparsity(sparsity: float) -> float:
    """c, so that at least a share ``sparsity`` becomes zero.

    ``1 / (1 - sparsity)``, whatever the distribution: the share that is left
    is ``E min(1, |g| / tau) <= E|g| / tau = 1 - sparsity``. It is equal where
    no gradient is above tau.

    Raises:
        ValueError: ``sparsity`` is not in [0, 1).
    """
    _check_share('sparsity', sparsity)
    return 1 / (1 - sparsity)


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
    # Rounded as the result will be, so that this is the tau of the draw too.
    tau = min(tau, torch.finfo(grad.dtype).max)
    tau = torch.tensor(tau, dtype=grad.dtype).item()
    if tau == 0:
        return grad
    # Half precision has too few numbers in [0, 1) to draw from.
    wide = torch.promote_types(grad.dtype, torch.float32)
    draw = torch.empty_like(grad, dtype=wide).uniform_(generator=generator)
    size = grad.abs()
    dropped = size <= draw.mul_(tau)
    return size.clamp_(min=tau).copysign_(grad).masked_fill_(dropped, 0)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f'{name}={share!r} is not possible, because it is a '
                         'share of the gradients: use a number in [0, 1).')

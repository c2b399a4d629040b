"""Pruning activation gradients, and a backward pass that skips the zeros."""
from .pruning import factor_of_rate, factor_of_sparsity, prune
from .sparse import build_kernels, sparse_conv2d

__all__ = [
    'build_kernels', 'factor_of_rate', 'factor_of_sparsity', 'prune',
    'sparse_conv2d'
]

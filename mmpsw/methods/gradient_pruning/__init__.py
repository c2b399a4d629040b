"""Pruning activation gradients."""
from .pruning import Pruner, factor_of_rate, factor_of_sparsity, prune

__all__ = ['Pruner', 'factor_of_rate', 'factor_of_sparsity', 'prune']

"""Pruning activation gradients."""
from .pruning import Pruner, factor_of_rate, prune

__all__ = ['Pruner', 'factor_of_rate', 'prune']

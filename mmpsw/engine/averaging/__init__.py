"""Periodic sampling over the weights: an OptimWrapper and a Hook.

The OptimWrapper owns the sampling and the writing back, and its state lives
with the optimizer's. The Hook does what needs the runner.
"""
from .hook import PSWHook
from .optim_wrapper import PSWAmpOptimWrapper, PSWOptimWrapper

__all__ = ['PSWAmpOptimWrapper', 'PSWHook', 'PSWOptimWrapper']

"""Periodic sampling over the weights: an OptimWrapper and a Hook.

The OptimWrapper holds the settings, ``psw``, and the follower of its
optimizer: what averages, and whether there was an update. The Hook drives the
followers, on one clock: the run's own iteration.
"""
from .hook import PSWHook
from .optim_wrapper import PSWAmpOptimWrapper, PSWOptimWrapper

__all__ = ['PSWAmpOptimWrapper', 'PSWHook', 'PSWOptimWrapper']

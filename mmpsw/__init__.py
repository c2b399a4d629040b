"""Train OpenMMLab models better by periodically resampling their weights.

In configs, ``type='mmpsw.PSWHook'`` imports what it names. In a loop of your
own, use :mod:`mmpsw.methods.averaging`, which is plain PyTorch.
"""
from .compatibility import check_torch
from .version import __version__

__all__ = ['__version__']

check_torch()

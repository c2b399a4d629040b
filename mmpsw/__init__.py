"""Train OpenMMLab models better by periodically resampling their weights.

``mmpsw.methods.averaging`` is plain PyTorch. What needs torch or mmengine is imported
when it is asked for: by ``type='mmpsw.PSWHook'`` in a config, by
``type='PSWHook'`` after ``custom_imports = ['mmpsw']``, or by
``mmpsw.PSWHook``.
"""
import sys

from .compatibility import check_torch
from .version import __version__

check_torch()

ENGINE = ('PSWAmpOptimWrapper', 'PSWHook', 'PSWOptimWrapper')

__all__ = ['__version__', *ENGINE]

if 'mmengine' in sys.modules:  # custom_imports comes from there
    from .registry import register_bare_names
    register_bare_names()


def __getattr__(name: str):
    if name in ENGINE:
        from . import engine
        return getattr(engine, name)
    raise AttributeError(f"module 'mmpsw' has no attribute {name!r}")

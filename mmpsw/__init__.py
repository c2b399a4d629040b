"""Train OpenMMLab models better by periodically resampling their weights.

In configs, ``type='mmpsw.PSWHook'`` imports what it names. In a loop of your
own, use :mod:`mmpsw.methods.averaging`, which is plain PyTorch. Their classes
are here too: ``from mmpsw import PSWHook, PeriodicResampler``.
"""
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .compatibility import check_torch
from .version import __version__

if TYPE_CHECKING:  # for editors; at run time they are imported when asked for
    from .engine import *  # noqa: F403
    from .methods.averaging import *  # noqa: F403
    from .runtime import *  # noqa: F403

__all__ = ['__version__']

_HOMES = ('mmpsw.methods.averaging', 'mmpsw.runtime', 'mmpsw.engine')

check_torch()


def __getattr__(name: str) -> Any:
    if name[:1].isupper():  # a class: a module is looked for elsewhere
        for home in map(import_module, _HOMES):
            if name in home.__all__:
                return getattr(home, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

"""Registries with scope 'mmpsw': ``type='mmpsw.PSWHook'`` imports itself."""
from collections.abc import Callable
from typing import Any

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import Registry

__all__ = [
    'DATASETS', 'HOOKS', 'MODELS', 'OPTIM_WRAPPERS', 'register_bare_names'
]

DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='mmpsw',
    locations=['mmpsw.datasets.label_noise'])
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmpsw',
    locations=['mmpsw.engine', 'mmpsw.runtime'])
MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmpsw',
    locations=['mmpsw.engine'])
OPTIM_WRAPPERS = Registry(
    'optim_wrapper',
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope='mmpsw',
    locations=['mmpsw.engine'])


def register_bare_names() -> None:
    """Make ``type='PSWHook'`` work, as after ``custom_imports``.

    A bare name is looked up in the default scope and in mmengine's own
    registries, never in a sibling such as ours. What stands there imports the
    class when it is built: torch and mmengine's runner take seconds.
    """
    for root, names in _BARE_NAMES.items():
        for name in names:
            if name not in root.module_dict:
                root.register_module(name=name, module=_built_late(name))


_BARE_NAMES = {
    MMENGINE_HOOKS: ('PSWHook', ),
    MMENGINE_OPTIM_WRAPPERS: ('PSWAmpOptimWrapper', 'PSWOptimWrapper'),
}


def _built_late(name: str) -> Callable:

    def build(*args: Any, **kwargs: Any) -> Any:
        from mmpsw import engine
        return getattr(engine, name)(*args, **kwargs)

    build.__name__ = build.__qualname__ = name
    return build

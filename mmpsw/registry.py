"""Registries with scope 'mmpsw': ``type='mmpsw.PSWHook'`` imports itself."""
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
    locations=['mmpsw.engine', 'mmpsw.analysis'])
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
    registries, never in a sibling such as ours.
    """
    for ours, root in ((HOOKS, MMENGINE_HOOKS),
                       (OPTIM_WRAPPERS, MMENGINE_OPTIM_WRAPPERS)):
        for name, module in ours.module_dict.items():
            if name not in root.module_dict:
                root.register_module(name=name, module=module)

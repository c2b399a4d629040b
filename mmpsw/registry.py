"""Registries with scope 'mmpsw': ``type='mmpsw.PSWHook'`` imports itself.

Each hangs below mmengine's of the same name. The prefix is needed: a bare
name is looked up in the default scope and in mmengine's own registries only.
"""
from mmengine import registry as parents
from mmengine.registry import Registry

__all__ = ['DATASETS', 'HOOKS', 'MODELS', 'OPTIMIZERS',
           'OPTIM_WRAPPERS', 'OPTIM_WRAPPER_CONSTRUCTORS']


def _child(parent: Registry, *locations: str) -> Registry:
    """A registry whose classes are registered by importing ``locations``."""
    return Registry(
        parent.name, parent=parent, scope='mmpsw', locations=list(locations))


DATASETS = _child(parents.DATASETS, 'mmpsw.datasets.label_noise')
HOOKS = _child(parents.HOOKS, 'mmpsw.engine', 'mmpsw.runtime')
MODELS = _child(parents.MODELS, 'mmpsw.engine')
OPTIMIZERS = _child(parents.OPTIMIZERS, 'mmpsw.engine')
OPTIM_WRAPPERS = _child(parents.OPTIM_WRAPPERS, 'mmpsw.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    parents.OPTIM_WRAPPER_CONSTRUCTORS, 'mmpsw.engine')

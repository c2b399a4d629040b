"""Writes a config in the newer style: classes for types, and no scope.

As the git checkouts of mmdet, mmseg and mmpretrain have them in
``mmdet/configs`` and so on. What a layer's settings name stays a string
there (``norm_cfg=dict(type='BN')``), and so do functions (``type='nms'``).
"""
from pathlib import Path

from mmengine import registry

from mmpsw import configs
from mmpsw.models import init_scope

REGISTRIES = ('MODELS', 'DATASETS', 'DATA_SAMPLERS', 'TRANSFORMS', 'METRICS',
              'HOOKS', 'LOOPS', 'OPTIMIZERS', 'OPTIM_WRAPPERS',
              'PARAM_SCHEDULERS', 'TASK_UTILS', 'FUNCTIONS', 'VISUALIZERS',
              'VISBACKENDS', 'LOG_PROCESSORS')
SHARED = ('default_hooks', 'env_cfg', 'visualizer', 'log_processor',
          'log_level', 'load_from', 'resume', 'tta_model')


def write(name, folder):
    """Returns the path of ``newer.py``, which has the content of a config."""
    cfg = configs.load_config(name)
    init_scope(cfg)
    content = {key: value for key, value in cfg.to_dict().items()
               if key not in ('default_scope', 'vis_backends')}
    base = {key: content.pop(key) for key in SHARED if key in content}
    path, runtime = (Path(folder, name)
                     for name in ('newer.py', '_base_/runtime.py'))
    runtime.parent.mkdir()
    runtime.write_text(_module(base, cfg.default_scope)
                       + 'default_scope = None\n')
    path.write_text('from mmengine.config import read_base\n'
                    'with read_base():\n'
                    '    from ._base_.runtime import *\n'
                    + _module(content, cfg.default_scope))
    return str(path)


def _module(content, scope):
    imports = {}  # the name in the module, of what it imports

    def code(node, key=''):
        if isinstance(node, dict):
            pairs = [f'{inner!r}: ' + (kind(value, key) if inner == 'type' else
                                       code(value, inner))
                     for inner, value in node.items() if inner != '_scope_']
            return f'dict(**{{{", ".join(pairs)}}})'
        if isinstance(node, (list, tuple)):
            items = ''.join(f'{code(item, key)}, ' for item in node)
            return f'[{items}]' if isinstance(node, list) else f'({items})'
        return repr(node)

    def kind(name, key):
        found = _class(name if '.' in name else f'{scope}.{name}')
        if found is None or key in ('norm_cfg', 'init_cfg'):
            return repr(name)
        return imports.setdefault(found, f'{found.__name__}_{len(imports)}')

    lines = [f'{key} = {code(value)}\n' for key, value in content.items()]
    return ''.join([
        f'from {found.__module__} import {found.__name__} as {name}\n'
        for found, name in imports.items()] + lines)


def _class(name):
    for one in REGISTRIES:
        kind = getattr(registry, one).get(name)
        if isinstance(kind, type):
            return kind
    return None

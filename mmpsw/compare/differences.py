"""How the resolved configs of two runs differ."""

import ast
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

# Where a run lies and whether it was interrupted: no difference in what it
# trained.
_PLACES = ('work_dir', 'resume', 'experiment_name')
_SEED = re.compile(r'\bseed=\d+')

# Of a data set's settings, those that do not say which data it holds.
_NOT_DATA = ('data_root', 'pipeline', 'test_mode', 'backend_args',
             'file_client_args', 'lazy_init', 'serialize_data', 'download',
             'max_refetch', 'return_classes')


def compared_text(config_path: Path) -> str:
    """A saved config without its work directory and its seed."""
    text = config_path.read_text(encoding='utf-8')
    lines = text.splitlines()
    kept: list[str] = []
    end = 0
    statements = ast.parse(text).body
    resumed = any(ast.unparse(s) == 'resume = True' for s in statements)
    for statement in statements:
        kept += lines[end:statement.lineno - 1]
        end = statement.end_lineno
        body = lines[statement.lineno - 1:end]
        names = [getattr(target, 'id', '')
                 for target in getattr(statement, 'targets', [])]
        if 'randomness' in names:
            body = [_SEED.sub('seed=...', line) for line in body]
        if resumed and 'load_from' in names:  # from where it was interrupted
            body = ['load_from = None']
        if not set(names) & set(_PLACES):
            kept += body
    return '\n'.join(kept + lines[end:]) + '\n'


def unified_diff(ours: Path, theirs: Path, our_name: str,
                 their_name: str) -> str:
    """What to change in ``theirs`` to get ``ours``; empty if nothing.

    Args:
        ours: A saved config, as mmengine writes it beside its log.
        theirs: The one that it is compared with.
        our_name: What the diff calls the first.
        their_name: What it calls the second.
    """
    return ''.join(difflib.unified_diff(
        compared_text(theirs).splitlines(keepends=True),
        compared_text(ours).splitlines(keepends=True),
        their_name, our_name))


def data_of(config: Config, phase: str) -> dict[str, Any]:
    """What says which data a config uses, wherever they lie.

    Args:
        config: A whole config.
        phase: 'train' or 'val'.

    Returns:
        dict: The data set's settings without its place and its pipeline;
        equal results mean equal data.
    """
    loader = config.get(f'{phase}_dataloader') or {}
    return _settings(loader.get('dataset') or {})


def differing_keys(ours: Any, theirs: Any) -> list[str]:
    """The dotted keys whose values differ, scopes left aside."""
    return _differing(bare(ours), bare(theirs), '')


def _differing(ours: Any, theirs: Any, prefix: str) -> list[str]:
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return [] if ours == theirs else [prefix]
    return [
        found for key in dict.fromkeys([*theirs, *ours])
        for found in _differing(ours.get(key), theirs.get(key),
                                f'{prefix}.{key}'.lstrip('.'))
    ]


def bare(value: Any) -> Any:
    """A config's value with plain containers and without any scope."""
    if isinstance(value, Mapping):
        return {
            key: _class_name(item) if key == 'type' else bare(item)
            for key, item in value.items() if key != '_scope_'
        }
    if isinstance(value, (list, tuple)):
        return [bare(item) for item in value]
    return value


def _settings(dataset: Mapping) -> dict[str, Any]:
    root = dataset.get('data_root')
    data = {}
    for key, value in dataset.items():
        if key in (*_NOT_DATA, '_scope_') or value is None:
            continue
        if key == 'dataset':
            data[key] = _settings(value)
        elif key == 'datasets':
            data[key] = [_settings(item) for item in value]
        else:
            data[key] = _without_root(bare({key: value})[key], root)
    return {key: value for key, value in data.items() if value not in ('', {})}


def _without_root(value: Any, root: str | None) -> Any:
    if isinstance(value, dict):
        return {key: _without_root(item, root) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    if root and value.startswith(root):
        value = value[len(root):]
    return value.strip('/')


def _class_name(kind: object) -> str:
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2]

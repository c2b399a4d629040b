"""How the configs of two runs differ."""
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmengine.config import Config

__all__ = ['changed_lines', 'data_of', 'differing_keys', 'lines', 'listed',
           'plain']

# Where a run lies and whether it was interrupted: no difference in what it
# trained. The seed is compared elsewhere.
_PLACES = ('work_dir', 'resume', 'experiment_name')

# Of a data set's settings, those that do not say which data it holds.
_NOT_DATA = ('_scope_', 'data_root', 'pipeline', 'test_mode', 'backend_args',
             'file_client_args', 'lazy_init', 'serialize_data', 'download',
             'max_refetch', 'return_classes')


def lines(config: Config) -> list[str]:
    """A config's settings, ``a.b = 1``, without place and seed.

    Items of a list have no number, so that one more moves none of the others.
    """
    settings = config.to_dict()
    if settings.get('resume'):  # from where it was interrupted
        settings['load_from'] = None
    randomness = {**(settings.get('randomness') or {}), 'seed': '...'}
    kept = {key: value for key, value in settings.items()
            if key not in _PLACES}
    return list(_flat({**kept, 'randomness': randomness}, ''))


def changed_lines(ours: Config, theirs: Config) -> list[str]:
    """What to take away from ``theirs`` ('-') and add ('+') to get ours."""
    diff = difflib.unified_diff(lines(theirs), lines(ours), n=0, lineterm='')
    return [line for line in list(diff)[2:] if line[0] in '+-']


def data_of(config: Config, phase: str) -> Any:
    """The settings that say which data 'train' or 'val' uses.

    Equal results mean equal data, wherever they lie.
    """
    loader = config.get(f'{phase}_dataloader') or {}
    return plain(loader.get('dataset') or {})


def plain(value: Any, root: str = '') -> Any:
    """A setting in plain containers, without scopes and places."""
    if isinstance(value, Mapping):
        root = value.get('data_root') or root
        items = {key: (str(getattr(item, '__name__', item)).split('.')[-1]
                       if key == 'type' else plain(item, root))
                 for key, item in value.items() if key not in _NOT_DATA}
        return {key: item for key, item in items.items()
                if item is not None and item != '' and item != {}}
    if isinstance(value, (list, tuple)):
        return [plain(item, root) for item in value]
    return (value.removeprefix(root).strip('/') if isinstance(value, str)
            else value)


def differing_keys(ours: Any, theirs: Any, prefix: str = '') -> list[str]:
    """The dotted keys whose values differ."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return [] if ours == theirs else [prefix]
    return [found for key in dict.fromkeys([*theirs, *ours])
            for found in differing_keys(ours.get(key), theirs.get(key),
                                        f'{prefix}.{key}'.lstrip('.'))]


def listed(items: Iterable, most: int = 10) -> str:
    """Items in a sentence."""
    items = list(items)
    shown = ', '.join(map(str, items[:most]))
    return shown if len(items) <= most else f'{shown}, ... ({len(items)})'


def _flat(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f'{key}.{name}'.lstrip('.'))
    elif isinstance(value, (list, tuple)) and any(
            isinstance(item, Mapping) for item in value):
        for item in value:
            yield from _flat(item, f'{key}[]')
    else:
        yield f'{key} = {value!r}'

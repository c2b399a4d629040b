"""How a training differs from the one whose result the model zoo publishes.

Where nothing differs, the zoo's number is what the baseline should reach.
"""
import re
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmpsw import configs
from mmpsw.compare.differences import data_of, differing_keys, listed, plain
from mmpsw.zoo import Stock, find_stock

__all__ = ['differences']


def differences(config: str | Path, cfg: Config,
                processes: int | None = 1) -> list[str]:
    """Sentences on what differs from the published config.

    Args:
        config: What the runs are started with, a path or a zoo name.
        cfg: The baseline's whole config, with all options.
        processes: Of each run; None where they are not known, and with them
            the batch.

    Returns:
        list[str]: Empty where nothing does, or no zoo has such a config.
    """
    stock = find_stock(config)
    if stock is None:
        return []
    published = configs.load_config(stock.path)
    found = [sentence for key in ('optim_wrapper', 'train_cfg')
             for sentence in _settings(cfg, published, key)]
    found += _schedule(cfg, published)
    if processes is not None:
        found += _batch(cfg, published, stock, processes)
    if cfg.get('model') and 'data_preprocessor' not in published.model:
        cfg = Config(cfg.to_dict())
        cfg.model.pop('data_preprocessor', None)  # a run copies it there
    if cfg.get('load_from') != published.get('load_from'):
        found.append(f'It begins with the weights of {cfg.load_from!r}.')
    for key, what in (('model', 'The model'), ('custom_hooks',
                                               'custom_hooks')):
        keys = differing_keys(_without_places(cfg.get(key)),
                              _without_places(published.get(key)))
        found += [f'{what} differs from the published one'
                  f'{f" in {listed(keys, 4)}" if keys != [""] else ""}.'
                  ] if keys else []
    for phase, what in (('train', 'trained'), ('val', 'validated')):
        keys = differing_keys(data_of(cfg, phase), data_of(published, phase))
        keys += differing_keys(_pipeline(cfg, phase),
                               _pipeline(published, phase), 'pipeline')
        found += [f'It is {what} on other data than the published one '
                  f'({phase}_dataloader.dataset: {listed(keys, 4)}).'
                  ] if keys else []
    return found


def _settings(cfg: Config, published: Config, key: str) -> list[str]:
    ours, theirs = plain(cfg.get(key)), plain(published.get(key))
    return [f'{found} is {_value(ours, found, key)}; the published training '
            f'has {_value(theirs, found, key)}.'
            for found in differing_keys(ours, theirs, key)]


def _value(settings: Any, key: str, outer: str) -> str:
    for part in key.removeprefix(outer).strip('.').split('.'):
        settings = (settings or {}).get(part)
    text = 'nothing' if settings is None else repr(settings)
    return text if len(text) < 80 else 'another one'


def _schedule(cfg: Config, published: Config) -> list[str]:
    ours, theirs = ([plain(item) for item in _several(
        config.get('param_scheduler'))] for config in (cfg, published))
    if ours == theirs:
        return []
    names = [', '.join(item['type'] for item in items) or 'none'
             for items in (ours, theirs)]
    if names[0] != names[1]:
        return [f'The schedule of the learning rate is {names[0]}; the '
                f'published training has {names[1]}.']
    keys = [key for index, pair in enumerate(zip(ours, theirs))
            for key in differing_keys(*pair, f'param_scheduler.{index}')]
    return [f'The schedule of the learning rate differs from the published '
            f'one in {listed(keys, 4)}.']


def _batch(cfg: Config, published: Config, stock: Stock,
           processes: int) -> list[str]:
    """The images of an update, against those that the rate is meant for."""
    loader = cfg.get('train_dataloader') or {}
    size = loader.get('batch_size') or (
        loader.get('batch_sampler') or {}).get('batch_size', 1)
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    total = size * processes * accumulated
    named = re.search(r'_(\d+)xb(\d+)', stock.inner)
    base = (published.get('auto_scale_lr') or {}).get('base_batch_size')
    # Some inherit another base_batch_size than the one in their name.
    meant = int(named[1]) * int(named[2]) if named else base
    ours = cfg.get('auto_scale_lr') or {}
    scaled, ours = ours.get('enable', False), ours.get('base_batch_size')
    if meant is None or total == meant and (not scaled or ours == meant):
        return []
    if scaled:
        what = (f': it is scaled here, from a batch of {ours}' +
                ('' if ours == meant else ', which is another one'))
    else:
        what = ' (--auto-scale-lr scales it)' if ours == meant else ''
    parts = [f'{size}', f'{processes} processes', f'{accumulated} iterations']
    shown = ' x '.join(parts[:3 if accumulated > 1 else 2])
    return [f'The batch is {total} ({shown}); the published training has '
            f'{meant}, and its learning rate is meant for that{what}.']


def _several(value: Any) -> list:
    return ([] if value is None else list(value)
            if isinstance(value, (list, tuple)) else [value])


def _pipeline(cfg: Config, phase: str) -> Any:
    dataset = (cfg.get(f'{phase}_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return plain(dataset.get('pipeline') or [])


def _without_places(value: Any) -> Any:
    """Without the addresses and paths of weights, which may lie anywhere."""
    value = plain(value)
    for part in configs.dicts(value):
        for key in ('checkpoint', 'pretrained'):
            if isinstance(part.get(key), str):
                part[key] = part[key].rpartition('/')[2]
    return value

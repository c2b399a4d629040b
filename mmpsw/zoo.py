"""What the model zoos publish: the stock config behind a config, its weights.

OpenMMLab's packages ship their zoos' ``metafile.yml``: a list of models with
the keys Config, Weights and Results. The server that has the weights has not
answered since June 2026 (mmdetection#12446), so that they are looked for on
this machine first.
"""
import fcntl
import os
import re
import socket
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml
from mmengine.config import Config

from mmpsw import configs

__all__ = ['FROM_ZOO', 'Stock', 'checkpoint', 'fetch', 'find_stock',
           'localise', 'models', 'weights_of']

FROM_ZOO = 'zoo'  # in the place of a checkpoint's path
_SCHEMES = ('open-mmlab://', 'openmmlab://')  # mmengine's names for addresses
_PATIENCE = 30.  # seconds until a server counts as silent


@dataclass(frozen=True)
class Stock:
    """A config of an installed zoo."""

    package: str
    root: Path  # holds configs/ and the metafiles
    inner: str  # in configs/

    def __str__(self) -> str:
        return f'{self.package}::{self.inner}'

    @property
    def path(self) -> Path:
        """The file."""
        return self.root / 'configs' / self.inner


def find_stock(config: str | Path) -> Stock | None:
    """The nearest stock config that a config is, or inherits from."""
    path = Path(configs.resolve_config(config)).resolve()
    for package in configs.FRAMEWORKS:
        spec = find_spec(package)
        root = Path(spec.origin).parent / '.mim' if spec else path
        folder = (root / 'configs').resolve()
        if path.is_relative_to(folder) and '_base_' not in path.parts:
            return Stock(package, root, path.relative_to(folder).as_posix())
    bases = (name if '::' in name else path.parent / name
             for name in Config._get_base_files(str(path)))
    return next(filter(None, map(find_stock, bases)), None)


def models(stock: Stock) -> list[dict]:
    """What the zoo says of the models that it trained with a stock config."""
    name = f'configs/{stock.inner}'
    texts = [path.read_text(encoding='utf-8')
             for path in sorted(stock.root.rglob('metafile.y*ml'))]
    # Reading all of them as YAML takes seconds.
    contents = [yaml.safe_load(text) for text in texts if name in text]
    return [model for content in contents for model in (
        content if isinstance(content, list) else content['Models'])
        if model.get('Config') == name]


def weights_of(config: str | Path) -> str:
    """The address of the weights that a config's zoo publishes.

    Raises:
        ValueError: There are none, or several.
    """
    stock = find_stock(config)
    if stock is None:
        raise ValueError(f"'{config}' has no published weights, because it "
                         'stems from no config of a model zoo; give the path '
                         'of a checkpoint')
    found = {weights for model in models(stock)
             for weights in [model.get('Weights')] if weights}
    if len(found) != 1:
        names = ', '.join(sorted(str(item).rpartition('/')[2]
                                 for item in found))
        raise ValueError(
            f'{stock.package} publishes '
            f'{f"several weights ({names})" if found else "no weights"} for '
            f'{stock}; give the path of a checkpoint')
    return found.pop()


def fetch(address: str, folder: str | Path | None = None) -> Path:
    """The file at an address, from this machine where it is there.

    It is looked for by its name in ``folder`` (by default that of the
    environment's MMPSW_WEIGHTS), then in torch's cache; else downloaded.

    Raises:
        ValueError: It is nowhere, or ``folder`` is none.
    """
    import torch
    folder = folder or os.environ.get('MMPSW_WEIGHTS')
    if folder and not Path(folder).is_dir():
        raise ValueError(f"--weights '{folder}' is no folder; give one that "
                         'holds the published weights under their names')
    name = urlparse(address).path.rpartition('/')[2]
    cache = Path(torch.hub.get_dir()) / 'checkpoints'
    for place in ([Path(folder)] if folder else []) + [cache]:
        if (place / name).is_file():
            return place / name
    cache.mkdir(parents=True, exist_ok=True)
    digest = re.search(r'-([a-f0-9]{8,})\.', name)
    lock = os.open(cache, os.O_RDONLY)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes, one
        if not (cache / name).is_file():
            torch.hub.download_url_to_file(
                address, str(cache / name), digest and digest[1],
                progress=os.isatty(2))
    except (OSError, RuntimeError, HTTPException) as error:
        raise ValueError(
            f"the weights '{name}' are not on this machine, and {address} "
            f'does not send them ({error}); put the file into a folder that '
            f'--weights or MMPSW_WEIGHTS names, or into {cache}') from error
    finally:
        os.close(lock)
        socket.setdefaulttimeout(patience)
    return cache / name


def checkpoint(place: str, config: str | Path,
               folder: str | Path | None = None) -> str:
    """The path of a checkpoint that may be :data:`FROM_ZOO` or an address.

    See :func:`localise`.
    """
    if place == FROM_ZOO:
        return str(fetch(weights_of(config), folder))
    return _local(place, folder)


def localise(cfg: Config, config: str | Path,
             folder: str | Path | None = None) -> None:
    """Fetch the weights that a run begins with, in place.

    Those of ``load_from``, where it is an address or :data:`FROM_ZOO`; and
    those of the model's parts, unless the whole model's are the zoo's. A file
    in torch's cache keeps its address, where mmengine looks for it.

    Args:
        cfg: A whole config.
        config: Its path or name.
        folder: See :func:`fetch`.

    Raises:
        ValueError: Some are nowhere.
    """
    whole = cfg.get('load_from') == FROM_ZOO
    if cfg.get('load_from'):
        cfg.load_from = checkpoint(cfg.load_from, config, folder)
    for part in configs.dicts(cfg.get('model')):
        keys = [key for key in ('pretrained', 'init_cfg')
                if _is_pretrained(part.get(key))]
        for key in keys:
            if whole:  # all weights come later
                part[key] = None
            elif key == 'pretrained':
                part[key] = _local(part[key], folder)
            else:
                part[key]['checkpoint'] = _local(part[key]['checkpoint'],
                                                 folder)


def _is_pretrained(value: Any) -> bool:
    """Whether it is an address, or an init_cfg that has one."""
    return isinstance(value, str) or (
        isinstance(value, dict) and 'checkpoint' in value
        and configs.class_name(value.get('type')) in ('Pretrained',
                                                      'PretrainedInit'))


def _local(place: str, folder: str | Path | None) -> str:
    """A path in the folder, or else what it was; fetched."""
    import torch
    address = place
    for scheme in _SCHEMES:
        if place.startswith(scheme):
            from mmengine.runner.checkpoint import (
                get_deprecated_model_names,
                get_external_models,
            )
            name = place.removeprefix(scheme)
            name = get_deprecated_model_names().get(name, name)
            address = get_external_models().get(name, '')
    if not address.startswith(('http://', 'https://')):
        return place
    path = fetch(address, folder)
    in_cache = path.parent == Path(torch.hub.get_dir()) / 'checkpoints'
    return place if in_cache else str(path)

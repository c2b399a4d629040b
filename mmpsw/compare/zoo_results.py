"""What the model zoos publish for the stock config that a run stems from.

OpenMMLab's packages ship their zoos' ``metafile.yml``::

    Models:
      - Name: retinanet_r18_fpn_1x_coco
        Config: configs/retinanet/retinanet_r18_fpn_1x_coco.py
        Results:
          - Task: Object Detection
            Dataset: COCO
            Metrics: {box AP: 31.7}
        Weights: https://...
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import yaml
from mmengine.config import Config

from mmpsw import configs
from mmpsw.compare import differences
from mmpsw.compare.runs import Run

# Our metrics' keys: the zoo's name for the same, its task, and what 1 of ours
# is in its unit (mmdet logs fractions and publishes percentages).
_PUBLISHED = {
    ('mmdet', 'coco/bbox_mAP'): ('box AP', 'Object Detection', 100),
    ('mmdet', 'coco/segm_mAP'): ('mask AP', 'Instance Segmentation', 100),
    ('mmseg', 'mIoU'): ('mIoU', 'Semantic Segmentation', 1),
    ('mmpretrain', 'accuracy/top1'):
    ('Top 1 Accuracy', 'Image Classification', 1),
    ('mmpretrain', 'accuracy/top5'):
    ('Top 5 Accuracy', 'Image Classification', 1),
}
_REPOSITORIES = {
    'mmdet': 'mmdetection',
    'mmseg': 'mmsegmentation',
    'mmpretrain': 'mmpretrain',
}
_SHOWN_KEYS = 4


class NotPublishedError(ValueError):
    """The zoo has no number that could stand beside a run's."""


@dataclass(frozen=True)
class Published:
    """A number of a model zoo.

    Attributes:
        value: In the unit of the run's metric.
        metric: The zoo's name for it.
        name: The stock config, ``mmdet::retinanet/...``.
        source: The package and its version.
        config_url: Where the stock config can be seen.
        weights_url: The checkpoint with this number; None without one.
        caveats: Sentences on how its training differs from the run's.
    """

    value: float
    metric: str
    name: str
    source: str
    config_url: str
    weights_url: str | None
    caveats: tuple[str, ...]


@dataclass(frozen=True)
class _Stock:
    """A stock config: a package, its zoo's folder, and a path in it."""

    package: str
    root: Path
    inner: str

    @property
    def name(self) -> str:
        return f'{self.package}::{self.inner}'


def find_published(config: str | Path, run: Run) -> Published:
    """Find the zoo's number for the stock config that a config stems from.

    Args:
        config: A path or a zoo name: what the run was started with. It is,
            or inherits from, the stock config.
        run: The run, whose saved config says which data it validates on.

    Raises:
        NotPublishedError: There is no such number, or none that is certain
            to mean the same. The message is the reason.
        ValueError: There is no such config.
    """
    stock = _find_stock(Path(configs.resolve_config(config)).resolve())
    if stock is None:
        raise NotPublishedError(
            f"'{config}' stems from no config of a model zoo")
    ours = Config.fromfile(run.config_path, import_custom_modules=False)
    theirs = configs.load_config(stock.root / 'configs' / stock.inner)
    _check_data(stock, ours, theirs)
    models = list(_models(stock))
    if not models:
        raise NotPublishedError(
            f'the metafile.yml of {stock.package} does not list {stock.name}')
    value, metric, model = _result(stock, models, run.metric)
    version = getattr(import_module(stock.package), '__version__', '')
    return Published(
        value=value,
        metric=metric,
        name=stock.name,
        source=f'{stock.package} {version}',
        config_url=f'https://github.com/open-mmlab/'
        f'{_REPOSITORIES[stock.package]}/blob/v{version}/configs/'
        f'{stock.inner}',
        weights_url=_weights(model),
        caveats=tuple(_caveats(model, ours, theirs)))


def _find_stock(path: Path) -> _Stock | None:
    """The nearest stock config, the given one first."""
    for package in configs.FRAMEWORKS:
        spec = find_spec(package)
        if spec is None:
            continue
        root = Path(spec.origin).parent / '.mim'
        folder = (root / 'configs').resolve()
        if path.is_relative_to(folder) and '_base_' not in path.parts:
            return _Stock(package, root, path.relative_to(folder).as_posix())
    for base in _bases(path):
        found = _find_stock(base)
        if found is not None:
            return found
    return None


def _bases(path: Path) -> list[Path]:
    names = _base_names(path)
    return [
        Path(configs.resolve_config(name)).resolve() if '::' in name else
        (path.parent / name).resolve()
        for name in ([names] if isinstance(names, str) else names)
    ]


def _base_names(path: Path) -> str | list[str]:
    text = path.read_text(encoding='utf-8')
    if path.suffix != '.py':
        return yaml.safe_load(text).get('_base_', [])
    for statement in ast.parse(text).body:
        names = [getattr(target, 'id', '')
                 for target in getattr(statement, 'targets', [])]
        if names == ['_base_']:
            return ast.literal_eval(statement.value)
        if isinstance(statement, ast.With):
            raise NotPublishedError(
                f"'{path.name}' inherits by `with read_base()`, of which the "
                'stock config cannot be told')
    return []


def _check_data(stock: _Stock, ours: Config, theirs: Config) -> None:
    keys = differences.differing_keys(differences.data_of(ours, 'val'),
                                  differences.data_of(theirs, 'val'))
    if keys:
        raise NotPublishedError(
            f'the validation data are not those of {stock.name} '
            f'({_listed(keys)} of val_dataloader.dataset differ)')


def _models(stock: _Stock) -> Iterator[dict]:
    """The zoo's entries for a stock config."""
    wanted = f'configs/{stock.inner}'
    for path in sorted(stock.root.rglob('metafile.y*ml')):
        text = path.read_text(encoding='utf-8')
        if wanted not in text:  # reading all of them as YAML takes seconds
            continue
        content = yaml.safe_load(text)
        models = content if isinstance(content, list) else content['Models']
        yield from (model for model in models
                    if model.get('Config') == wanted)


def _result(stock: _Stock, models: list[dict],
            metric: str) -> tuple[float, str, dict]:
    """The number, the zoo's name for it, and the entry that has it."""
    if (stock.package, metric) not in _PUBLISHED:
        raise NotPublishedError(
            f'it is not known what {stock.package} publishes as {metric}')
    name, task, unit = _PUBLISHED[stock.package, metric]
    found = [(result['Metrics'][name] / unit, model)
             for model in models for result in _results(model)
             if result.get('Task') == task
             and (result.get('Metrics') or {}).get(name) is not None]
    values = sorted({value for value, _ in found})
    if not values:
        raise NotPublishedError(
            f'{stock.package} publishes no {name} for {stock.name}')
    if len(values) > 1:
        shown = ', '.join(f'{value:g}' for value in values)
        raise NotPublishedError(
            f'{stock.package} publishes several {name} for {stock.name} '
            f'({shown}), of different weights')
    return values[0], name, found[0][1]


def _results(model: dict) -> list[dict]:
    """mmseg has one result a model, the others have a list."""
    results = model.get('Results') or []
    return [results] if isinstance(results, dict) else results


def _weights(model: dict) -> str | None:
    weights = model.get('Weights')
    if isinstance(weights, list):
        weights = weights[0] if len(weights) == 1 else None
    return weights


def _caveats(model: dict, ours: Config, theirs: Config) -> Iterator[str]:
    if model.get('Converted From'):
        yield 'Its weights were converted from elsewhere, not trained so.'
    keys = differences.differing_keys(_compared(ours), _compared(theirs))
    if keys:
        yield f'Ours differs from the stock config in {_listed(keys)}.'


def _compared(config: Config) -> dict:
    """What of a config decides whether two trainings could end alike."""
    model = dict(config.model)
    # The runner copies it here from the top level.
    model.pop('data_preprocessor', None)
    dataset = config.val_dataloader.dataset
    return dict(model=model, train_cfg=config.get('train_cfg'),
                train_data=differences.data_of(config, 'train'),
                val_pipeline=dataset.get('pipeline'))


def _listed(keys: list[str]) -> str:
    shown = ', '.join(keys[:_SHOWN_KEYS])
    more = len(keys) - _SHOWN_KEYS
    return f'{shown} and {more} more' if more > 0 else shown

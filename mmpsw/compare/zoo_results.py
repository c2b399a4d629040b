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
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import yaml
from mmengine.config import Config

from mmpsw import configs
from mmpsw.compare.differences import data_of, differing_keys, plain
from mmpsw.compare.runs import Run

__all__ = ['NotPublishedError', 'Published', 'find_published']

# Our metrics' keys: the zoo's name for the same, its task, and what 1 of ours
# is in its unit (mmdet logs fractions and publishes percentages).
_PUBLISHED = {
    ('mmdet', 'coco/bbox_mAP'): ('box AP', 'Object Detection', 100),
    ('mmdet', 'coco/segm_mAP'): ('mask AP', 'Instance Segmentation', 100),
    ('mmseg', 'mIoU'): ('mIoU', 'Semantic Segmentation', 1),
    ('mmpretrain', 'accuracy/top1'): ('Top 1 Accuracy', 'Image Classification',
                                      1),
}
_REPOSITORIES = {'mmdet': 'mmdetection', 'mmseg': 'mmsegmentation',
                 'mmpretrain': 'mmpretrain'}
_SHOWN_KEYS = 4


class NotPublishedError(ValueError):
    """The zoo has no number that could stand beside a run's."""


@dataclass(frozen=True)
class Published:
    """A number of a model zoo.

    Attributes:
        value: In the unit of the run's metric.
        sentence: Who publishes it, for what.
        config_url: Where the stock config can be seen.
        weights_url: The checkpoint with this number; None without one.
        caveats: Sentences on how its training differs from the run's.
    """

    value: float
    sentence: str
    config_url: str
    weights_url: str | None
    caveats: tuple[str, ...]


def find_published(config: str | Path, run: Run, metric: str) -> Published:
    """Find the zoo's number for the stock config that a config stems from.

    Args:
        config: A path or a zoo name: what the run was started with. It is,
            or inherits from, the stock config.
        run: The run, whose saved config says which data it validates on.
        metric: What was measured.

    Raises:
        NotPublishedError: There is no such number, or none that is certain
            to mean the same. The message is the reason.
        ValueError: There is no such config.
    """
    found = _find_stock(Path(configs.resolve_config(config)).resolve())
    if found is None:
        raise NotPublishedError(f"'{config}' stems from no config of a model "
                                'zoo')
    package, root, inner = found
    stock = configs.load_config(root / 'configs' / inner)
    keys = differing_keys(data_of(run.config, 'val'), data_of(stock, 'val'))
    if keys:
        raise NotPublishedError(
            f'the validation data are not those of {package}::{inner} '
            f'({_listed(keys)} of val_dataloader.dataset differ)')
    value, name, model = _result(package, root, inner, metric)
    version = import_module(package).__version__
    weights = model.get('Weights')
    return Published(
        value=value,
        sentence=f'{package} {version} publishes {name} {value:g} (in the '
        f'unit of {metric}) for {package}::{inner}, on the same validation '
        'data',
        config_url=f'https://github.com/open-mmlab/{_REPOSITORIES[package]}/'
        f'blob/v{version}/configs/{inner}',
        weights_url=weights if isinstance(weights, str) else None,
        caveats=_caveats(model, run.config, stock))


def _find_stock(path: Path) -> tuple[str, Path, str] | None:
    """The nearest stock config, the given one first: package, root, name."""
    for package in _REPOSITORIES:
        spec = find_spec(package)
        root = Path(spec.origin).parent / '.mim' if spec else path
        folder = (root / 'configs').resolve()
        if path.is_relative_to(folder) and '_base_' not in path.parts:
            return package, root, path.relative_to(folder).as_posix()
    for name in Config._get_base_files(str(path)):
        base = configs.resolve_config(name if '::' in name else
                                      path.parent / name)
        found = _find_stock(Path(base).resolve())
        if found is not None:
            return found
    return None


def _result(package: str, root: Path, inner: str,
            metric: str) -> tuple[float, str, dict]:
    """The number, the zoo's name for it, and the model that has it."""
    if (package, metric) not in _PUBLISHED:
        raise NotPublishedError(f'it is not known what {package} publishes as '
                                f'{metric}')
    name, task, unit = _PUBLISHED[package, metric]
    found = [
        (result['Metrics'][name] / unit, model)
        for model in _models(root, f'configs/{inner}')
        for result in _as_list(model.get('Results') or [])
        if result.get('Task') == task and name in (result.get('Metrics') or {})
    ]
    values = sorted({value for value, _ in found})
    if len(values) != 1:
        what = (f'several {name} ({", ".join(map("{:g}".format, values))}, of '
                'different weights)' if values else f'no {name}')
        raise NotPublishedError(f'{package} publishes {what} for '
                                f'{package}::{inner}')
    return values[0], name, found[0][1]


def _models(root: Path, config: str) -> list[dict]:
    """The zoo's entries for a stock config."""
    texts = [path.read_text(encoding='utf-8')
             for path in sorted(root.rglob('metafile.y*ml'))]
    # Reading all of them as YAML takes seconds.
    contents = [yaml.safe_load(text) for text in texts if config in text]
    return [model for content in contents for model in
            (content if isinstance(content, list) else content['Models'])
            if model.get('Config') == config]


def _as_list(results: dict | list) -> list[dict]:
    """mmseg has one result a model, the others have a list."""
    return [results] if isinstance(results, dict) else results


def _caveats(model: dict, ours: Config, stock: Config) -> tuple[str, ...]:
    found = []
    if model.get('Converted From'):
        found.append('Its weights were converted from elsewhere, not trained '
                     'so.')
    keys = differing_keys(_compared(ours), _compared(stock))
    if keys:
        found.append(f'Ours differs from the stock config in {_listed(keys)}.')
    return tuple(found)


def _compared(config: Config) -> dict:
    """What of a config decides whether two trainings could end alike."""
    model = {key: value for key, value in config.model.items()
             if key != 'data_preprocessor'}  # the runner copies it there
    return dict(model=plain(model), train_cfg=plain(config.train_cfg),
                train_data=data_of(config, 'train'), val_pipeline=plain(
                    config.val_dataloader.dataset.get('pipeline')))


def _listed(keys: list[str]) -> str:
    more = len(keys) - _SHOWN_KEYS
    return ', '.join(keys[:_SHOWN_KEYS]) + (f' and {more} more' if more > 0
                                            else '')

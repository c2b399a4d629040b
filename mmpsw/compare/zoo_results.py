"""What the model zoos publish for the stock config that a run stems from.

OpenMMLab's packages ship their zoos' ``metafile.yml``: a list of models with
the keys Config, Weights and Results (Task and Metrics).
"""
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from mmengine.config import Config

from mmpsw import configs
from mmpsw.compare.differences import data_of, differing_keys, listed
from mmpsw.compatibility import distribution
from mmpsw.zoo import Stock, find_stock, models

__all__ = ['NotPublishedError', 'Published', 'find_published']

# Our metrics' keys: the zoo's name for the same, its task, and what 1 of ours
# is in its unit (mmdet logs fractions and publishes percentages).
_NAMES = {
    ('mmdet', 'coco/bbox_mAP'): ('box AP', 'Object Detection', 100),
    ('mmdet', 'coco/segm_mAP'): ('mask AP', 'Instance Segmentation', 100),
    ('mmseg', 'mIoU'): ('mIoU', 'Semantic Segmentation', 1),
    ('mmpretrain', 'accuracy/top1'): ('Top 1 Accuracy', 'Image Classification',
                                      1),
}


class NotPublishedError(ValueError):
    """The zoo has no number that could stand beside a run's."""


@dataclass(frozen=True)
class Published:
    """A number of a model zoo, in the unit of the run's metric."""

    value: float
    sentences: tuple[str, ...]  # who publishes it, and how its training was
    config_url: str
    weights_url: str | None


def find_published(config: str | Path, trained: Config,
                   metric: str) -> Published:
    """Find the zoo's number for the stock config that a config stems from.

    Args:
        config: A path or a zoo name: what the run was started with. It is,
            or inherits from, the stock config.
        trained: What a run saved, which says on what data it validates.
        metric: What was measured.

    Raises:
        NotPublishedError: There is no such number, or none that is certain
            to mean the same. The message is the reason.
        ValueError: There is no such config.
    """
    stock = find_stock(config)
    if stock is None:
        raise NotPublishedError(f"'{config}' stems from no config of a model "
                                'zoo')
    package = stock.package
    keys = differing_keys(data_of(trained, 'val'),
                          data_of(configs.load_config(stock.path), 'val'))
    if keys:
        raise NotPublishedError(
            f'the validation data are not those of {stock} '
            f'({listed(keys, 4)} of val_dataloader.dataset differ)')
    if (package, metric) not in _NAMES:
        raise NotPublishedError(f'it is not known what {package} publishes as '
                                f'{metric}')
    name, task, unit = _NAMES[package, metric]
    found = _results(stock, name, task)
    if len(found) != 1:
        values = ', '.join(f'{value / unit:g}' for value in sorted(found))
        what = (f'several {name} ({values}, of different weights)' if found
                else f'no {name}')
        raise NotPublishedError(f'{package} publishes {what} for {stock}')
    (value, model), = found.items()
    version = import_module(package).__version__
    sentences = [
        f'{package} {version} publishes {name} {value / unit:g} (in the unit '
        f'of {metric}) for {stock}, on the same validation data.']
    if 'Converted From' in model:
        sentences.append('Its weights were converted from elsewhere, not '
                         'trained so.')
    weights = model.get('Weights')  # a list, where there are several
    name = distribution(package)
    repository = {'mmdet': 'mmdetection'}.get(name, name)
    owner = 'vbti-development' if 'onedl' in name else 'open-mmlab'
    return Published(
        value / unit, tuple(sentences),
        f'https://github.com/{owner}/{repository}/blob/v{version}/configs/'
        f'{stock.inner}', weights if isinstance(weights, str) else None)


def _results(stock: Stock, name: str, task: str) -> dict[float, dict]:
    """The zoo's models for a stock config, by their value of a metric."""
    found = {}
    for model in models(stock):
        results = model.get('Results') or []
        # mmseg has one result a model, the others have a list.
        for result in [results] if isinstance(results, dict) else results:
            value = (result.get('Metrics') or {}).get(name)
            if result.get('Task') == task and value is not None:
                found[value] = model
    return found

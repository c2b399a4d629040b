"""What the model zoos publish for the stock config that a run stems from.

OpenMMLab's packages ship their zoos' ``metafile.yml``: a list of models with
the keys Config, Weights and Results (Task and Metrics).
"""
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import yaml
from mmengine.config import Config

from mmpsw import configs
from mmpsw.compare.differences import data_of, differing_keys, listed, plain
from mmpsw.compatibility import distribution

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
    found = _find_stock(Path(configs.resolve_config(config)).resolve())
    if found is None:
        raise NotPublishedError(f"'{config}' stems from no config of a model "
                                'zoo')
    package, root, inner = found
    stock = configs.load_config(root / 'configs' / inner)
    keys = differing_keys(data_of(trained, 'val'), data_of(stock, 'val'))
    if keys:
        raise NotPublishedError(
            f'the validation data are not those of {package}::{inner} '
            f'({listed(keys, 4)} of val_dataloader.dataset differ)')
    if (package, metric) not in _NAMES:
        raise NotPublishedError(f'it is not known what {package} publishes as '
                                f'{metric}')
    name, task, unit = _NAMES[package, metric]
    models = _results(root, f'configs/{inner}', name, task)
    if len(models) != 1:
        values = ', '.join(f'{value / unit:g}' for value in sorted(models))
        what = (f'several {name} ({values}, of different weights)' if models
                else f'no {name}')
        raise NotPublishedError(f'{package} publishes {what} for '
                                f'{package}::{inner}')
    (value, model), = models.items()
    version = import_module(package).__version__
    sentences = [
        f'{package} {version} publishes {name} {value / unit:g} (in the unit '
        f'of {metric}) for {package}::{inner}, on the same validation data.']
    if 'Converted From' in model:
        sentences.append('Its weights were converted from elsewhere, not '
                         'trained so.')
    keys = differing_keys(_compared(trained), _compared(stock))
    if keys:
        sentences.append('Ours differs from the stock config in '
                         f'{listed(keys, 4)}.')
    weights = model.get('Weights')  # a list, where there are several
    name = distribution(package)
    repository = {'mmdet': 'mmdetection'}.get(name, name)
    owner = 'vbti-development' if 'onedl' in name else 'open-mmlab'
    return Published(
        value / unit, tuple(sentences),
        f'https://github.com/{owner}/{repository}/blob/v{version}/configs/'
        f'{inner}', weights if isinstance(weights, str) else None)


def _find_stock(path: Path) -> tuple[str, Path, str] | None:
    """The nearest stock config, the given one first: package, root, name."""
    for package in configs.FRAMEWORKS:
        spec = find_spec(package)
        root = Path(spec.origin).parent / '.mim' if spec else path
        folder = (root / 'configs').resolve()
        if path.is_relative_to(folder) and '_base_' not in path.parts:
            return package, root, path.relative_to(folder).as_posix()
    bases = (configs.resolve_config(name if '::' in name else path.parent
                                    / name)
             for name in Config._get_base_files(str(path)))
    stocks = (_find_stock(Path(base).resolve()) for base in bases)
    return next(filter(None, stocks), None)


def _results(root: Path, config: str, name: str,
             task: str) -> dict[float, dict]:
    """The zoo's models for a stock config, by their value of a metric."""
    texts = [path.read_text(encoding='utf-8')
             for path in sorted(root.rglob('metafile.y*ml'))]
    # Reading all of them as YAML takes seconds.
    contents = [yaml.safe_load(text) for text in texts if config in text]
    found = {}
    for content in contents:
        for model in (content if isinstance(content, list)
                      else content['Models']):
            results = model.get('Results') or []
            # mmseg has one result a model, the others have a list.
            for result in [results] if isinstance(results, dict) else results:
                value = (result.get('Metrics') or {}).get(name)
                if (model.get('Config'), result.get('Task')) == (
                        config, task) and value is not None:
                    found[value] = model
    return found


def _compared(config: Config) -> dict:
    """What of a config decides whether two trainings could end alike."""
    model = {key: value for key, value in config.model.items()
             if key != 'data_preprocessor'}  # the runner copies it there
    return dict(model=plain(model), train_cfg=plain(config.train_cfg),
                train_data=data_of(config, 'train'), val_pipeline=plain(
                    config.val_dataloader.dataset.get('pipeline')))

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
from mmpsw.compare.differences import data_of, differing_keys, plain
from mmpsw.compare.runs import Run

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
_SHOWN_KEYS = 4


class NotPublishedError(ValueError):
    """The zoo has no number that could stand beside a run's."""


@dataclass(frozen=True)
class Published:
    """A number of a model zoo, in the unit of the run's metric."""

    value: float
    sentence: str  # who publishes it, for what
    caveats: tuple[str, ...]  # how its training differs from the run's
    config_url: str
    weights_url: str | None


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
    keys = differing_keys(_compared(run.config), _compared(stock))
    version, weights = import_module(package).__version__, model.get('Weights')
    return Published(
        value,
        f'{package} {version} publishes {name} {value:g} (in the unit of '
        f'{metric}) for {package}::{inner}, on the same validation data',
        caveats=(*['Its weights were converted from elsewhere, not trained '
                   'so.'] * ('Converted From' in model),
                 *[f'Ours differs from the stock config in {_listed(keys)}.']
                 * bool(keys)),
        config_url='https://github.com/open-mmlab/'
        f'{configs.FRAMEWORKS[package].replace("mmdet", "mmdetection")}/blob/'
        f'v{version}/configs/{inner}',
        weights_url=weights if isinstance(weights, str) else None)


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


def _result(package: str, root: Path, inner: str,
            metric: str) -> tuple[float, str, dict]:
    """The number, the zoo's name for it, and the model that has it."""
    if (package, metric) not in _NAMES:
        raise NotPublishedError(f'it is not known what {package} publishes as '
                                f'{metric}')
    name, task, unit = _NAMES[package, metric]
    found = {}
    for model in _models(root, f'configs/{inner}'):
        results = model.get('Results') or []
        # mmseg has one result a model, the others have a list.
        for result in [results] if isinstance(results, dict) else results:
            value = (result.get('Metrics') or {}).get(name)
            if result.get('Task') == task and value is not None:
                found[value / unit] = model
    if len(found) != 1:
        values = ', '.join(f'{value:g}' for value in sorted(found))
        what = (f'several {name} ({values}, of different weights)' if found
                else f'no {name}')
        raise NotPublishedError(f'{package} publishes {what} for '
                                f'{package}::{inner}')
    (value, model), = found.items()
    return value, name, model


def _models(root: Path, config: str) -> list[dict]:
    """The zoo's entries for a stock config."""
    texts = [path.read_text(encoding='utf-8')
             for path in sorted(root.rglob('metafile.y*ml'))]
    # Reading all of them as YAML takes seconds.
    contents = [yaml.safe_load(text) for text in texts if config in text]
    return [model for content in contents for model in
            (content if isinstance(content, list) else content['Models'])
            if model.get('Config') == config]


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

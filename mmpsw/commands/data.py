"""Whether a config's data are there, and fit it."""
import os
import os.path as osp
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.fileio import load
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from mmpsw import configs
from mmpsw.checkpoints import is_local
from mmpsw.compatibility import FAMILIES

# Dataset classes of mmpretrain that fetch their files themselves.
_SELF_FETCHING = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')
# What mmengine calls the file system among its storage backends.
_FILE_SYSTEM = (None, 'local', 'disk')


def check_data(cfg: Config, *phases: str) -> None:
    """Looks for the data of 'train', 'val' or 'test', before any download.

    Where nothing but the file system can hold them: a data set of a class
    that no framework ships, or with another storage backend, finds or makes
    its files in a way of its own. All that is missing is said at once.

    Raises:
        FileNotFoundError: Files or folders do not exist; it names them all.
    """
    problems = []
    for phase in phases:
        key = f'{phase}_dataloader'
        for inner, dataset in _datasets(cfg.get(key), key):
            if _is_stock(cfg, dataset) and not _is_elsewhere(dataset):
                problems += _check_dataset(inner, dataset)
        key = f'{phase}_evaluator'
        for evaluator in _evaluators(cfg, phase):
            if not _is_elsewhere(evaluator):
                problems += _missing(
                    [evaluator.get('ann_file')], key, 'put the annotations '
                    'there, or set their place with --cfg-options '
                    f'{key}.ann_file=FILE')
    if problems:
        raise FileNotFoundError('; '.join(problems))


def check_topk(cfg: Config, phase: str) -> None:
    """Refuses an accuracy among more classes than there are, at 'val', 'test'.

    mmpretrain's stock data sets have topk=(1, 5), and it would end with an
    error at the first validation.
    """
    head = (cfg.get('model') or {}).get('head') or {}
    classes = head.get('num_classes') if isinstance(head, dict) else None
    for evaluator in _evaluators(cfg, phase):
        topk = evaluator.get('topk') or ()
        most = max((topk, ) if isinstance(topk, int) else topk, default=0)
        if (classes and most > classes and configs.class_name(
                evaluator.get('type')) == 'Accuracy'):
            raise ValueError(
                f'{phase}_evaluator.topk={topk} cannot be used, because the '
                f'model has {classes} classes; set --cfg-options '
                f'{phase}_evaluator.topk="(1,)"')


@contextmanager
def explained() -> Iterator[None]:
    """Turns what a stock data set stumbles over, while it reads its files,
    into a ValueError of one line: mostly, nothing is left in it. The same for
    a label that the loss does not know, which only a CPU can say."""
    try:
        yield
    except IndexError as error:
        label = re.fullmatch(r'Target (-?\d+) is out of bounds\.', str(error))
        if label is None:
            raise
        raise ValueError(
            f'the label {label[1]} cannot be learned, because it is neither '
            'below num_classes nor the ignore_index of the loss; set these, '
            'or reduce_zero_label, or mend the labels of one of '
            f'{_listed(_batch(error))}') from error
    except (ValueError, AssertionError, RuntimeError, KeyError,
            TypeError) as error:
        dataset = _reading(error)
        if dataset is None:
            raise
        problem = ' '.join(str(error).split()).rstrip('.')
        if isinstance(error, KeyError):
            problem = f'an entry lacks {problem}'
        if 'need at least one array' in problem:  # to hold all of it
            problem = 'nothing is left in it to learn from'
        raise _unusable(dataset, problem) from error


class DataHook(Hook):
    """Looks whether names fit what stock data sets found, before the first
    iteration: else a run learns or measures nothing, or the wrong thing.

    Raises:
        ValueError: A class is in no file, no image has an object, a label map
            is missing, or a class folder has another label in validation.
    """

    def before_train(self, runner: Runner) -> None:
        train, val = (_of_loop(loop)
                      for loop in (runner.train_loop, runner.val_loop))
        _check_names(train, train=True)
        _check_names(val)
        for datasets in (train, val):
            _check_labels(datasets)
        for dataset in val:
            for other in train:
                _check_folders(runner, other, dataset)

    def before_test(self, runner: Runner) -> None:
        _check_names(_of_loop(runner.test_loop))  # may have no label


def _of_loop(loop: object) -> list[BaseDataset]:
    """The data sets of a loop, if all that it reads are stock."""
    waiting = [getattr(getattr(loop, 'dataloader', None), 'dataset', None)]
    found = []
    while waiting:
        dataset = waiting.pop()
        inner = [*getattr(dataset, 'datasets', ()),
                 *filter(None, [getattr(dataset, 'dataset', None)])]
        waiting += inner
        if not inner:
            found.append(dataset)
    return found if all(
        isinstance(dataset, BaseDataset) and _is_shipped(type(dataset))
        and dataset._fully_initialized for dataset in found) else []


def _check_names(datasets: Sequence[BaseDataset], train: bool = False
                 ) -> None:
    """Without them all, mmdet gives labels to those that it finds, in the
    order of the file, and a detection of a higher label ends in an error."""
    for dataset in datasets:
        found = getattr(dataset, 'cat_ids', None)  # of a file in COCO's format
        classes = _classes(dataset)
        if found is None or len(found) >= len(classes):
            continue
        names = _categories(dataset)
        # A training set may lack the last ones.
        if not (train and found and [names.get(number) for number in found]
                == classes[:len(found)]):
            raise _unusable(dataset, 'its file has only '
                            f'{len(found)} of its {len(classes)} classes')


def _check_labels(datasets: Sequence[BaseDataset]) -> None:
    infos = [dataset.get_data_info(index) for dataset in datasets
             for index in range(min(1, len(dataset)))]
    # Some of a loop's data sets may be there without labels.
    if infos and all('instances' in info for info in infos) and not any(
            dataset.get_data_info(index)['instances']
            for dataset in datasets for index in range(len(dataset))):
        raise _unusable(datasets[0], 'no image in it has an object')
    for dataset, info in zip(datasets, infos):
        path = info.get('seg_map_path')
        if (path and _reads_maps(dataset) and is_local(path)
                and not osp.exists(path)):
            raise _unusable(dataset, f"'{path}' does not exist")


def _reads_maps(dataset: BaseDataset) -> bool:
    """Whether the stock step reads label maps, from the file system."""
    steps = [step for step in dataset.pipeline.transforms
             if type(step).__name__ == 'LoadAnnotations'
             and _is_shipped(type(step))]
    return bool(steps) and not any(
        _is_elsewhere({key: getattr(one, key, None)})
        for one in (dataset, *steps)
        for key in ('backend_args', 'file_client_args'))


def _check_folders(runner: Runner, train: BaseDataset,
                   val: BaseDataset) -> None:
    """Compares what mmpretrain's CustomDataset makes of its folders."""
    labels, others = (getattr(dataset, 'folder_to_idx', None) or {}
                      for dataset in (train, val))
    for name, label in others.items():
        if labels.get(name, label) != label:
            raise ValueError(
                f"the class folder '{name}' has the label {labels[name]} in "
                f'training and {label} in validation, because folders are '
                'numbered in alphabetical order in each; give '
                f"'{train.img_prefix}' and '{val.img_prefix}' the same "
                'folders, empty ones too')
    unknown = [name for name in others if name not in labels]
    if labels and unknown:
        runner.logger.warning(
            f"the class folders {_listed(unknown)} of '{val.img_prefix}' are "
            f"not in '{train.img_prefix}', and are taken for those of the "
            'same number, in alphabetical order')


def _unusable(dataset: BaseDataset, problem: str) -> ValueError:
    return ValueError(
        f'the data set {type(dataset).__name__} cannot be used, because '
        f'{problem}: {"; ".join(_findings(dataset))}')


def _batch(error: BaseException) -> Iterator[str]:
    """The images of the batch that an error comes from."""
    samples = []
    for _, names in _frames(error):
        for name in ('data_samples', 'batch_data_samples'):
            if isinstance(names.get(name), (list, tuple)):
                samples = names[name]
    for sample in samples:
        yield sample.metainfo.get('seg_map_path') or sample.get('img_path')


def _reading(error: BaseException) -> BaseDataset | None:
    """The stock data set that an error comes from, if any."""
    dataset = None
    for function, names in _frames(error):
        if function == 'full_init' and isinstance(
                names.get('self'), BaseDataset):
            dataset = names['self']
    # An empty one is false.
    if dataset is not None and _is_shipped(type(dataset)):
        return dataset
    return None


def _frames(error: BaseException) -> Iterator[tuple[str, dict]]:
    """The functions that an error came through, and what they named."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield frame.f_code.co_name, frame.f_locals


def _findings(dataset: BaseDataset) -> Iterator[str]:
    """What the data set looks for, beside what is there."""
    classes = _classes(dataset)
    if classes:
        yield f'metainfo.classes is {_listed(classes)}'
    ann_file = dataset.ann_file or ''
    if ann_file.endswith('.json'):
        names = _categories(dataset)
        if names:
            yield (f"the categories of '{ann_file}' are "
                   + _listed(names.values()))
    elif ann_file:
        yield f"the files are named by '{ann_file}'"
    prefix = dataset.data_prefix
    maps = 'seg_map_path' in prefix
    for key in ('img_suffix', *maps * ['seg_map_suffix'], 'extensions'):
        if hasattr(dataset, key):
            yield f'{key} is {getattr(dataset, key)!r}'
    for folder in prefix.values() if isinstance(prefix, dict) else [prefix]:
        if isinstance(folder, str) and osp.isdir(folder):
            files = (name for _, _, names in os.walk(folder) for name in names)
            found = {Path(name).suffix for name in islice(files, 1000)}
            yield (f"'{folder}' holds "
                   + (f'files in {_listed(sorted(found))}' if found else
                      'no file'))
    if dataset.filter_cfg:
        yield f'filter_cfg is {dict(dataset.filter_cfg)}'


def _classes(dataset: BaseDataset) -> list[str]:
    classes = dataset.metainfo.get('classes')
    return ([] if classes is None else
            [classes] if isinstance(classes, str) else list(classes))


def _categories(dataset: BaseDataset) -> dict[int, str]:
    """Those of a file in COCO's format, by their numbers."""
    with suppress(ValueError):  # that it is no JSON is said already
        held = load(dataset.ann_file, backend_args=dataset.backend_args)
        if isinstance(held, dict):
            return {one['id']: one['name']
                    for one in held.get('categories', ())}
    return {}


def _listed(names: Iterator[str]) -> str:
    names = [f"'{name}'" for name in names]
    return ', '.join(names[:10]) + (', ...' if len(names) > 10 else '')


def _evaluators(cfg: Config, phase: str) -> list[dict]:
    evaluators = cfg.get(f'{phase}_evaluator') or []
    return [evaluators] if isinstance(evaluators, dict) else evaluators


def _datasets(node: object, key: str) -> Iterator[tuple[str, dict]]:
    """The data sets in a dataloader, out of their wrappers."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _datasets(item, f'{key}.{index}')
    elif isinstance(node, dict):
        inner = [name for name in ('dataset', 'datasets') if name in node]
        for name in inner:
            yield from _datasets(node[name], f'{key}.{name}')
        if not inner:
            yield key, node


def _is_stock(cfg: Config, dataset: dict) -> bool:
    kind = dataset.get('type')
    if isinstance(kind, str):
        scope = configs.framework(cfg)
        kind = DATASETS.get(kind if '.' in kind or not scope else
                            f'{scope}.{kind}')
    return isinstance(kind, type) and _is_shipped(kind)


def _is_shipped(kind: type) -> bool:
    return kind.__module__.partition('.')[0] in FAMILIES['openmmlab']


def _is_elsewhere(settings: dict) -> bool:
    """Whether files are read by a storage backend: lmdb, petrel, a zip."""
    return any((one.get(key) or {}).get('backend') not in _FILE_SYSTEM
               for one in configs.dicts(settings)
               for key in ('backend_args', 'file_client_args'))


def _check_dataset(key: str, dataset: dict) -> list[str]:
    """Looks for the paths that a data set names, as BaseDataset joins them."""
    if (configs.class_name(dataset.get('type')) in _SELF_FETCHING
            and dataset.get('download', True)):
        return []
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or {}
    prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
    paths = [osp.join(root, part) for part in
             (dataset.get('ann_file'), *prefixes)
             if isinstance(part, str) and part]
    instead = (f"put the data set at data_root='{root}', or set its place "
               f'with --cfg-options {key}.data_root=FOLDER')
    # The names of missing files say more than that of their root.
    # Nor is a root asked for where all paths do without it.
    roots = [] if paths and all(map(osp.isabs, paths)) else [root]
    return _missing(paths, key, instead) or _missing(roots, key, instead)


def _missing(paths: Sequence[str | None], key: str,
             instead: str) -> list[str]:
    """A sentence on the paths that do not exist, if any."""
    lost = [f"'{path}'" for path in paths
            if path and is_local(path) and not osp.exists(path)]
    does = 'does' if len(lost) == 1 else 'do'
    return [f'{key}: {" and ".join(lost)} {does} not exist; {instead}'
            ] if lost else []

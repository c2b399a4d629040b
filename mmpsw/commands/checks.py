"""What is looked at before a run starts, so that it does not fail later."""
import logging
import os.path as osp
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from torch import nn

from mmpsw import checkpoints
from mmpsw.commands.launch import has_accelerator
from mmpsw.configs import is_amp, optim_wrappers
from mmpsw.models import unwrapped

# Dataset classes of mmpretrain that fetch their files themselves.
_SELF_FETCHING = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')


def check_data(cfg: Config, *phases: str) -> None:
    """Looks for the files of a config's data sets.

    To be called before anything is downloaded or built.

    Args:
        cfg: A whole config.
        phases: Of 'train', 'val' and 'test', those that will run.

    Raises:
        FileNotFoundError: A file or folder is missing.
    """
    for phase in phases:
        key = f'{phase}_dataloader'
        for inner, dataset in _datasets(cfg.get(key), key):
            _check_dataset(inner, dataset)
        _check_evaluator(cfg, f'{phase}_evaluator')


def check_checkpoint(path: str, resume: bool = False) -> None:
    """Looks into a checkpoint; addresses are left to mmengine.

    Args:
        path: Its path or address.
        resume: Whether a training is to go on from it.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It cannot be read as data, or holds something else.
    """
    if not _is_local(path):
        return
    if not osp.isfile(osp.expanduser(path)):
        raise FileNotFoundError(
            f"checkpoint '{path}' does not exist; give the path of a .pth "
            'file')
    content = checkpoints.read(osp.expanduser(path))
    if resume:
        checkpoints.check_resumable(path, content)
    weights = content
    if isinstance(content, dict):
        weights = content.get('state_dict', content)
    if not isinstance(weights, dict):
        raise ValueError(
            f"checkpoint '{path}' holds no weights, but a "
            f'{type(weights).__name__}; give one that mmengine has saved')


def check_pretrained(node: Any) -> None:
    """Looks into the checkpoints that parts of a model begin with.

    Args:
        node: A config's ``model``, or a part of it.

    Raises:
        FileNotFoundError, ValueError: As :func:`check_checkpoint`.
    """
    if isinstance(node, (list, tuple)):
        for item in node:
            check_pretrained(item)
    elif isinstance(node, dict):
        if node.get('type') == 'Pretrained' and 'checkpoint' in node:
            check_checkpoint(node['checkpoint'])
        check_pretrained(list(node.values()))


def keep_seed(cfg: Config) -> None:
    """Gives a resumed run, without a seed, that of its checkpoint, in place.

    mmengine does so too, but has made its data samplers before.
    """
    path = _source(cfg)
    seeded = (cfg.get('randomness') or {}).get('seed') is not None
    if seeded or not cfg.get('resume') or path is None:
        return
    seed = checkpoints.read(path, whole=False)['meta'].get('seed')
    if seed is not None:
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}


def check_fit(cfg: Config, model: nn.Module) -> None:
    """Compares the names and shapes of a checkpoint's weights.

    mmengine loads however few of them fit, and goes on with random others.

    Args:
        cfg: A whole config, its ``resume`` and ``load_from`` set.
        model: What was built from it.

    Raises:
        ValueError: They are those of another model.
    """
    path = _source(cfg)
    if path is None:
        return
    content = checkpoints.read(path, whole=False)
    weights = content.get('state_dict', content)
    held = {re.sub('^module.', '', name): w for name, w in weights.items()}
    problem = _misfit(held, unwrapped(model), bool(cfg.get('resume')))
    if problem is not None:
        raise ValueError(
            f"checkpoint '{path}' is of another model than the config's, "
            f'because {problem}; give one of this model, or the config that '
            'it was trained with')


def find_resume_point(cfg: Config) -> None:
    """Passes by what cannot be read, where a run resumes by itself, in place.

    Raises:
        ValueError: The work dir has checkpoints, and none can be read:
            starting anew would overwrite them.
    """
    if not cfg.get('resume') or cfg.get('load_from'):
        return
    newest, skipped = checkpoints.newest_readable(cfg.work_dir)
    named = _last_checkpoint(cfg.work_dir)
    if named and _is_local(named):
        problem = checkpoints.why_not_resumable(named)
        if problem is not None and problem not in skipped:
            skipped.append(problem)
    if not skipped and (newest is None or named):
        return
    if newest is None:
        raise ValueError(
            f"no checkpoint in '{cfg.work_dir}' can be read: {skipped[0]}; "
            'give another --work-dir, or --overwrite without --resume')
    if is_main_process():
        for reason in skipped:
            print_log(f'Skipped: {reason}', 'current', logging.WARNING)
        print_log(f'Resuming from {newest}, the newest that can be read',
                  'current', logging.WARNING)
    cfg.load_from = str(newest)


def check_work_dir(cfg: Config, overwrite: bool) -> None:
    """Refuses to overwrite the checkpoints of an earlier run.

    Args:
        cfg: A whole config, its ``work_dir`` and ``resume`` set.
        overwrite: Whether the user asked for it.

    Raises:
        ValueError: There are checkpoints, and this run does not continue
            them.
    """
    work_dir = Path(cfg.work_dir)
    if work_dir.exists() and not work_dir.is_dir():
        raise ValueError(f"--work-dir '{work_dir}' is a file; give a folder")
    old = sorted(work_dir.glob('*.pth'))
    if overwrite or not old or _continues(cfg):
        return
    raise ValueError(
        f"'{work_dir}' holds checkpoints of an earlier run ({old[0].name}), "
        'which this run would overwrite; add --resume to continue that run, '
        '--work-dir for another folder, or --overwrite')


def check_amp(cfg: Config) -> None:
    """Refuses mixed precision where there is nothing to run it on.

    Raises:
        ValueError: The config, or ``--amp``, asks for it on a CPU.
    """
    if has_accelerator():
        return
    for key, wrapper in optim_wrappers(cfg):
        if is_amp(wrapper):
            raise ValueError(
                f"{key}.type='{wrapper['type']}' (mixed precision) needs an "
                'accelerator, but torch sees none; train without --amp, from '
                'a config without it, or on a machine with a GPU')


def fit_to_cpu(cfg: Config) -> None:
    """Makes a distributed config run on CPUs, in place.

    DDP must not be given device ids there, NCCL and SyncBN do not exist.
    """
    if cfg.launcher == 'none' or has_accelerator():
        return
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))
    count = _unsync_batch_norm(cfg.model)
    if count and is_main_process():
        print_log(
            f'{count} SyncBN settings became BN: each process normalises by '
            'its own batch, as a CPU has no synchronised batch norm',
            'current')


def _last_checkpoint(work_dir: str) -> str:
    """What mmengine resumes from by itself; empty where it starts anew."""
    pointer = Path(work_dir, 'last_checkpoint')
    return pointer.read_text().strip() if pointer.is_file() else ''


def _source(cfg: Config) -> str | None:
    """The local checkpoint from which a run will start, if any."""
    path = cfg.get('load_from')
    if cfg.get('resume') and not path:
        path = _last_checkpoint(cfg.work_dir)
    return osp.expanduser(path) if path and _is_local(path) else None


def _misfit(held: dict, model: nn.Module, resume: bool) -> str | None:
    """What speaks against loading these weights into a model.

    A training resumes with all that it trains. Other runs may begin with
    part of the weights, such as a backbone's.
    """
    if not resume:
        common = held.keys() & model.state_dict().keys()
        return None if common else 'they have no name of a weight in common'
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in held:
            return f"it lacks '{name}'"
        if name in held and held[name].shape != parameter.shape:
            return (f"'{name}' in it has the shape {tuple(held[name].shape)} "
                    f'instead of {tuple(parameter.shape)}')
    return None


def _continues(cfg: Config) -> bool:
    """Whether the run resumes from the work dir itself."""
    if not cfg.get('resume'):
        return False
    source = cfg.get('load_from')
    return source is None or (Path(source).resolve().parent
                              == Path(cfg.work_dir).resolve())


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


def _check_dataset(key: str, dataset: dict) -> None:
    if _fetches_itself(dataset):
        return
    root = dataset.get('data_root') or ''
    for path in _dataset_paths(dataset):
        if _is_local(path) and not osp.exists(path):
            raise FileNotFoundError(
                f"{key}: '{path}' does not exist; put the data set at "
                f"data_root='{root}', or set its place with --cfg-options "
                f'{key}.data_root=FOLDER')


def _dataset_paths(dataset: dict) -> list[str]:
    """The paths that a data set names, joined as BaseDataset does.

    The root comes last: the name of a missing file says more.
    """
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or {}
    prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
    named = [dataset.get('ann_file'), *prefixes]
    parts = [part for part in named if isinstance(part, str) and part]
    return [osp.join(root, part) for part in parts] + [root] * bool(root)


def _fetches_itself(dataset: dict) -> bool:
    name = dataset.get('type')
    name = getattr(name, '__name__', str(name)).rpartition('.')[2]
    return name in _SELF_FETCHING and dataset.get('download', True)


def _check_evaluator(cfg: Config, key: str) -> None:
    evaluators = cfg.get(key) or []
    if isinstance(evaluators, dict):
        evaluators = [evaluators]
    for evaluator in evaluators:
        path = evaluator.get('ann_file')
        if path and _is_local(path) and not osp.exists(path):
            raise FileNotFoundError(
                f"{key}: '{path}' does not exist; put the annotations there, "
                f'or set their place with --cfg-options {key}.ann_file=FILE')


def _is_local(path: str) -> bool:
    return '://' not in path and not path.startswith('s3:')


def _unsync_batch_norm(node: object) -> int:
    """Turns SyncBN into BN in a model's config; returns how many."""
    if isinstance(node, (list, tuple)):
        return sum(_unsync_batch_norm(item) for item in node)
    if not isinstance(node, dict):
        return 0
    count = sum(_unsync_batch_norm(item) for item in node.values())
    if node.get('type') in ('SyncBN', 'MMSyncBN'):
        node['type'] = 'BN'
        count += 1
    return count

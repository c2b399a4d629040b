"""What is looked at before a run starts, so that it does not fail later.

Each check raises a ValueError, or a FileNotFoundError, whose one sentence says
what is wrong, why, and what to do instead. ``cfg`` is a whole config.
"""
import os.path as osp
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from mmpsw import checkpoints, configs
from mmpsw.checkpoints import is_local
from mmpsw.commands.launch import has_accelerator
from mmpsw.models import saved_tensors, unwrapped

# Dataset classes of mmpretrain that fetch their files themselves.
_SELF_FETCHING = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')
# Hooks that put an average into the model to validate it.
_AVERAGING_HOOKS = ('EMAHook', 'SwitchEMAHook', 'EpochAverageHook',
                    'LookaheadHook', 'ScheduleFreeHook')
_STOCK_WRAPPERS = ('OptimWrapper', 'AmpOptimWrapper', 'ApexOptimWrapper')


def check_training(cfg: Config, amp: bool = False) -> None:
    """All that needs no work dir: ``amp`` says that --amp was given."""
    check_psw(cfg)
    check_amp(cfg, amp)
    check_pretrained(cfg.get('model'))
    check_data(cfg, 'train', 'val')


def check_psw(cfg: Config) -> None:
    """Looks at ``psw``, its wrapper, and for another average beside it."""
    from mmpsw.engine.averaging.settings import Settings
    averages = [configs.class_name(hook.get('type'))
                for hook in cfg.get('custom_hooks') or []]
    averages = [name for name in averages if name in _AVERAGING_HOOKS]
    for key, wrapper in configs.optim_wrappers(cfg):
        name = configs.class_name(wrapper.get('type') or 'OptimWrapper')
        psw = wrapper.get('psw')
        if configs.is_psw(wrapper):
            configs.check_strategy(cfg)
            if not isinstance(psw, dict):
                raise ValueError(
                    f'{key}.type={name} needs {key}.psw, which says how to '
                    "average; write psw=dict(type='PWALKS', last=0.25), or "
                    '--with pwalks')
            settings = Settings.from_config(psw)
            if settings.swaps:
                averages.insert(0, f'{key}.psw.write_back=False' if not
                                settings.write_back else
                                f"{key}.psw.evaluate='average'")
        elif 'psw' in wrapper and name in _STOCK_WRAPPERS:
            raise ValueError(
                f"{key}.psw cannot be used with {key}.type='{name}', which "
                'does not average; add --with pswa, pwalks or pswm, or set '
                f'{key}.type=mmpsw.PSWOptimWrapper')
    if len(averages) > 1:
        raise ValueError(
            f'{averages[0]} and {averages[1]} cannot be used together, '
            'because both put their average into the model to validate it; '
            'leave out one of the methods, or remove it from custom_hooks')


def check_amp(cfg: Config, asked: bool = False) -> None:
    """Refuses mmengine's mixed precision, ``asked`` by --amp, on a CPU."""
    for key, wrapper in configs.optim_wrappers(cfg):
        if (configs.is_amp(wrapper) and not configs.is_psw(wrapper)
                and not has_accelerator()):
            instead = ('leave out --amp' if asked else
                       f"use {key}.type='OptimWrapper', without loss_scale "
                       'and dtype')
            raise ValueError(
                f"{key}.type='{wrapper['type']}' (mixed precision) needs an "
                f'accelerator, but torch sees none; {instead}, or train '
                '--with pwalks, pswa or pswm, whose wrapper does it on a CPU '
                'in bfloat16')


def check_data(cfg: Config, *phases: str) -> None:
    """Looks for the data of 'train', 'val' or 'test', before any download."""
    for phase in phases:
        key = f'{phase}_dataloader'
        for inner, dataset in _datasets(cfg.get(key), key):
            _check_dataset(inner, dataset)
        key = f'{phase}_evaluator'
        evaluators = cfg.get(key) or []
        for evaluator in ([evaluators] if isinstance(evaluators, dict) else
                          evaluators):
            _check_exists(
                evaluator.get('ann_file'), key, 'put the annotations there, '
                f'or set their place with --cfg-options {key}.ann_file=FILE')


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
    """Looks for the paths that a data set names, as BaseDataset joins them."""
    if (configs.class_name(dataset.get('type')) in _SELF_FETCHING
            and dataset.get('download', True)):
        return
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or {}
    prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
    # The root comes last: the name of a missing file says more.
    paths = [osp.join(root, part) for part in
             (dataset.get('ann_file'), *prefixes)
             if isinstance(part, str) and part]
    for path in [*paths, root]:
        _check_exists(
            path, key, f"put the data set at data_root='{root}', or set its "
            f'place with --cfg-options {key}.data_root=FOLDER')


def _check_exists(path: str | None, key: str, instead: str) -> None:
    if path and is_local(path) and not osp.exists(path):
        raise FileNotFoundError(f"{key}: '{path}' does not exist; {instead}")


def check_work_dir(cfg: Config, overwrite: bool) -> None:
    """Refuses to overwrite checkpoints that this run does not continue."""
    work_dir, source = Path(cfg.work_dir), cfg.get('load_from')
    if work_dir.exists() and not work_dir.is_dir():
        raise ValueError(f"--work-dir '{work_dir}' is a file; give a folder")
    continues = cfg.get('resume') and (
        source is None or Path(source).resolve().parent == work_dir.resolve())
    old = sorted(work_dir.glob('*.pth'))
    if old and not overwrite and not continues:
        raise ValueError(
            f"'{work_dir}' holds checkpoints of an earlier run "
            f'({old[0].name}), which this run would overwrite; add --resume '
            'to continue that run, --work-dir for another folder, or '
            '--overwrite')


def check_ride_along(cfg: Config, folders: Sequence[Path],
                     overwrite: bool) -> None:
    """Refuses folders of what rides along that something else writes to."""
    if folders and not cfg.get('val_dataloader'):
        raise ValueError(
            '--ride-along cannot be used, because what rides along is only '
            'validated, and the config has no val_dataloader; add one')
    places = [path.resolve() for path in (Path(cfg.work_dir), *folders)]
    for index, folder in enumerate(folders, start=1):
        if places[index] in places[:index]:
            raise ValueError(
                f"--ride-along folder '{folder}' is the work dir, or another "
                "average's; give each one a folder of its own")
        old = sorted(folder.glob('*.pth'))
        if old and not overwrite:
            raise ValueError(
                f"--ride-along folder '{folder}' holds checkpoints of an "
                f'earlier run ({old[0].name}), which this run would '
                'overwrite; give another folder, or --overwrite')


def make_work_dir(cfg: Config, hold: bool = True) -> None:
    """Makes the work dir, after all else was looked at, and holds it.

    With ``hold``, no other training can go on in it meanwhile.
    """
    from mmpsw.runtime.saving import hold_work_dir
    try:
        Path(cfg.work_dir).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cfg.work_dir).close()
        if hold and cfg.launcher == 'none':  # of several, one does so later
            hold_work_dir(cfg.work_dir)
    except OSError as error:
        raise ValueError(
            f"--work-dir '{cfg.work_dir}' cannot be written, because the "
            f"system says '{error.strerror}'; give another folder") from error


def find_start(cfg: Config) -> list[str]:
    """Looks at the checkpoint with which a run starts, or finds it, in place.

    ``--resume`` without a path takes the newest readable checkpoint of the
    work dir, by iteration. Returns what was chosen and skipped, for the log.
    """
    resume, notes = bool(cfg.get('resume')), []
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from, resume)
    elif resume:
        newest, skipped = checkpoints.newest_readable(cfg.work_dir)
        if newest is not None:
            cfg.load_from = str(newest)
            notes = [*(f'Skipped: {problem}' for problem in skipped),
                     f'Resuming from {newest}, the newest readable checkpoint']
        # A run from the start would replace them, or the best ones.
        elif skipped or any(Path(cfg.work_dir).glob('*.pth')):
            problem = ('can be read: ' + skipped[0] if skipped else
                       'can be resumed from: they have other names than '
                       'epoch_N.pth and iter_N.pth, as the best ones have, '
                       'which are saved without the optimizer')
            raise ValueError(
                f"no checkpoint in '{cfg.work_dir}' {problem}; give another "
                '--work-dir, or --overwrite without --resume')
    path, randomness = _local_source(cfg), cfg.get('randomness') or {}
    # mmengine takes the checkpoint's seed after it has made data samplers.
    if resume and path and randomness.get('seed') is None:
        seed = checkpoints.read(path, whole=False)['meta'].get('seed')
        cfg.randomness = {**randomness, 'seed': seed}
    return notes


def check_checkpoint(path: str, resume: bool = False) -> None:
    """Looks into a checkpoint; addresses are left to mmengine."""
    if not is_local(path):
        return
    if not osp.isfile(osp.expanduser(path)):
        raise FileNotFoundError(
            f"checkpoint '{path}' does not exist; give the path of a .pth "
            'file')
    content = checkpoints.read(osp.expanduser(path))
    if resume:
        checkpoints.check_resumable(path, content)
    checkpoints.weights(path, content)


def check_pretrained(model: Any) -> None:
    """Looks into the checkpoints that parts of a model begin with."""
    for part in configs.dicts(model):
        if part.get('type') == 'Pretrained' and 'checkpoint' in part:
            check_checkpoint(part['checkpoint'])


def check_fit(cfg: Config, model: nn.Module, whole: bool = False) -> None:
    """Compares the weights in ``load_from`` with those of a model.

    mmengine loads however few of them fit, and goes on with random others.
    With ``whole``, and when resuming, none may be missing.
    """
    path = _local_source(cfg)
    if path is None:
        return
    content = checkpoints.read(path, whole=False)
    hooks = [configs.class_name(hook.get('type'))
             for hook in cfg.get('custom_hooks') or []]
    if (cfg.get('resume') and 'orthogonal' in content
            and 'OrthogonalHook' not in hooks):
        raise ValueError(
            f"checkpoint '{path}' was saved with orthogonal maps, which this "
            'run does not have; add --with orthogonal (or the variant that '
            'the run was begun with), or start from its weights with '
            'load_from and without --resume')
    held = checkpoints.weights(path, content)
    held = {re.sub('^module.', '', name): w for name, w in held.items()}
    problem = _misfit(held, unwrapped(model), whole or bool(
        cfg.get('resume')))
    if problem is not None:
        raise ValueError(
            f"checkpoint '{path}' is of another model than the config's, "
            f'because {problem}; give one of this model, or the config that '
            'it was trained with')


def _local_source(cfg: Config) -> str | None:
    """The local checkpoint from which a run will start, if any."""
    path = cfg.get('load_from')
    return osp.expanduser(path) if path and is_local(path) else None


def _misfit(held: dict, model: nn.Module, whole: bool) -> str | None:
    """A training resumes, and a test is made, with all that is trained; other
    runs may begin with part of the weights, such as a backbone's."""
    tensors = saved_tensors(model)
    if not whole:
        common = held.keys() & tensors.keys()
        return None if common else 'they have no name of a weight in common'
    for name, parameter in tensors.items():
        if not isinstance(parameter, nn.Parameter):
            continue
        if parameter.requires_grad and name not in held:
            return f"it lacks '{name}'"
        if name in held and held[name].shape != parameter.shape:
            return (f"'{name}' in it has the shape {tuple(held[name].shape)} "
                    f'instead of {tuple(parameter.shape)}')
    return None

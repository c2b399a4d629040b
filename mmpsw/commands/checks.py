"""What is looked at before a run starts, so that it does not fail later.

Each check raises a ValueError, or a FileNotFoundError, whose one sentence says
what is wrong, why, and what to do instead. ``cfg`` is a whole config.
"""
import os.path as osp
import re
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import load_checkpoint
from torch import nn

from mmpsw import checkpoints, configs, zoo
from mmpsw.checkpoints import is_local
from mmpsw.commands.data import check_data, check_topk
from mmpsw.commands.launch import has_accelerator
from mmpsw.compare.runs import hook_of, logged_by
from mmpsw.models import saved_tensors, unwrapped

NEWEST = 'newest'  # in the place of `resume`, until it is looked for
_STOCK_WRAPPERS = ('OptimWrapper', 'AmpOptimWrapper', 'ApexOptimWrapper')


def check_training(cfg: Config, amp: bool = False) -> None:
    """All that needs no work dir: ``amp`` says that --amp was given."""
    check_names(cfg)
    check_psw(cfg)
    check_amp(cfg, amp)
    check_save_best(cfg)
    check_topk(cfg, 'val')
    check_data(cfg, 'train', 'val')


def check_names(cfg: Config) -> None:
    """Looks for our names without their prefix, which mmengine does not find,
    and for a package that one of them needs."""
    from mmpsw import registry
    hooks = [(f'custom_hooks.{index}', hook, registry.HOOKS)
             for index, hook in enumerate(cfg.get('custom_hooks') or [])]
    wrappers = [(key, wrapper, registry.OPTIM_WRAPPERS)
                for key, wrapper in configs.optim_wrappers(cfg)]
    optimizers = [(f'{key}.optimizer', wrapper.optimizer, registry.OPTIMIZERS)
                  for key, wrapper, _ in wrappers]
    for key, settings, ours in hooks + wrappers + optimizers:
        ours.import_from_location()
        kind = settings.get('type')
        if kind in ours.module_dict:
            raise ValueError(
                f"{key}.type='{kind}' would not be found, because mmengine "
                f"looks for it in its own registries; write 'mmpsw.{kind}'")
        if ('ScheduleFree' in configs.class_name(kind)
                and find_spec('schedulefree') is None):
            raise ValueError(
                f"{key}.type='{kind}' needs schedulefree, which is not "
                "installed; pip install 'mmpsw[schedule_free]'")


def check_psw(cfg: Config) -> None:
    """Looks at ``psw``, its wrapper, and for another average beside it."""
    from mmpsw.engine.averaging.settings import PSWSettings
    from mmpsw.engine.swapping import SWAPPING, check_one_average
    hooks = [configs.class_name(hook.get('type'))
             for hook in cfg.get('custom_hooks') or []]
    averages = [name for name in hooks if name in SWAPPING]
    shown = []
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
            if 'PSWHook' not in hooks:
                raise ValueError(
                    f'{key}.type={name} needs PSWHook, which tells it of the '
                    "run; add dict(type='mmpsw.PSWHook') to custom_hooks")
            settings = PSWSettings.from_config(psw)
            if settings.shows_average:
                shown = [f"{key}.psw.evaluate='average'"
                         if settings.write_back else
                         f'{key}.psw.write_back=False']
        elif 'psw' in wrapper and name in _STOCK_WRAPPERS:
            raise ValueError(
                f"{key}.psw cannot be used with {key}.type='{name}', which "
                'does not average; add --with psw, pswa or pwalks, or set '
                f'{key}.type=mmpsw.PSWOptimWrapper')
    check_one_average(shown + averages)


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
                '--with psw, pswa or pwalks, whose wrapper does it on a CPU '
                'in bfloat16')


def check_save_best(cfg: Config) -> None:
    """Looks whether ``save_best`` names metrics that will be logged."""
    best = hook_of(cfg).get('save_best')
    known = logged_by(cfg) if best else []
    for name in [best] if isinstance(best, str) else best or []:
        if known and name != 'auto' and name not in known:
            raise ValueError(
                f"default_hooks.checkpoint.save_best='{name}' cannot be "
                "followed, because it is not what the config's val_evaluator "
                f'logs; give one of {", ".join(known)}')


def check_work_dir(cfg: Config, overwrite: bool) -> None:
    """Refuses to overwrite checkpoints that this run does not continue."""
    work_dir, source = Path(cfg.work_dir), cfg.get('load_from')
    resume = cfg.get('resume')
    if work_dir.exists() and not work_dir.is_dir():
        raise ValueError(f"--work-dir '{work_dir}' is a file; give a folder")
    # A link in the work dir, or to a checkpoint there, continues it too.
    places = [] if source is None else [
        path.resolve() for path in (
            Path(source).expanduser().parent,
            Path(source).expanduser().resolve().parent)]
    continues = resume == NEWEST or resume and (
        source is None or work_dir.resolve() in places)
    config = Path(cfg.filename or '')
    if (cfg.filename and not overwrite and not resume
            and (work_dir / config.name).resolve() == config.resolve()):
        raise ValueError(
            f"--work-dir '{work_dir}' is the folder of the config, which the "
            'run would replace by what it makes of it; give another folder, '
            'or --overwrite')
    folders, elsewhere = [work_dir], hook_of(cfg).get('out_dir')
    if elsewhere:
        folders.append(Path(elsewhere) / work_dir.resolve().name)
    old = sorted(path for folder in folders for path in folder.glob('*.pth'))
    if old and not overwrite and not continues:
        raise ValueError(
            f"'{old[0].parent}' holds checkpoints of an earlier run "
            f'({old[0].name}), which this run would overwrite; add --resume '
            'to continue that run, --work-dir for another folder, or '
            '--overwrite')


def check_free(option: str, path: str | None, overwrite: bool) -> None:
    """Refuses a file, or a folder that is not empty, for results."""
    place = Path(path or '')
    if path and not overwrite and (place.is_file() or place.is_dir()
                                   and any(place.iterdir())):
        raise ValueError(
            f"{option} '{path}' is there already, and what is in it might be "
            'replaced; give another one, or --overwrite')


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

    With ``hold``, no other training can use it meanwhile.
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
    work dir, by iteration; where there is none, the run begins as the config
    says. Returns what was chosen and skipped, for the log.
    """
    resume, notes = bool(cfg.get('resume')), []
    search = resume and (cfg.resume == NEWEST or not cfg.get('load_from'))
    cfg.resume = resume
    if search:
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
        elif Path(cfg.work_dir, 'last_checkpoint').exists():
            cfg.load_from = None  # it is not on this machine: mmengine's
        else:
            cfg.resume = resume = False
            source = cfg.get('load_from')
            notes = [f"Nothing is resumed, as '{cfg.work_dir}' holds no "
                     'checkpoint: the run begins anew' + (
                         f', from {source}' if source else '')]
    if cfg.get('load_from') not in (None, zoo.FROM_ZOO) and not search:
        check_checkpoint(cfg.load_from, resume)
    path, randomness = _local_source(cfg), cfg.get('randomness') or {}
    # mmengine takes the checkpoint's seed after it has made data samplers.
    if resume and path and randomness.get('seed') is None:
        seed = checkpoints.read(path, whole=False)['meta'].get('seed')
        cfg.randomness = {**randomness, 'seed': seed}
    return notes


def check_checkpoint(path: str, resume: bool = False,
                     weights: bool = True) -> None:
    """Looks into a checkpoint; addresses are left to mmengine."""
    if not is_local(path):
        return
    if not osp.isfile(osp.expanduser(path)):
        what = ('is a folder' if osp.isdir(osp.expanduser(path)) else
                'does not exist')
        raise FileNotFoundError(
            f"checkpoint '{path}' {what}; give the path of a .pth file")
    content = checkpoints.read(osp.expanduser(path))
    if resume:
        checkpoints.check_resumable(path, content)
    if weights:
        checkpoints.weights(path, content)


def check_weights(cfg: Config, config: str,
                  folder: Path | None = None) -> None:
    """Fetches the weights with which a run begins, in place, and looks.

    ``config`` is its path or name, ``folder`` that of :func:`zoo.fetch`.
    """
    source = cfg.get('load_from')
    zoo.localise(cfg, config, folder)
    if cfg.get('load_from') != source:
        check_checkpoint(cfg.load_from)
    check_pretrained(cfg.get('model'))


def check_pretrained(model: Any) -> None:
    """Looks whether checkpoints that parts of a model begin with can be read.

    What is in them is between the file and the part: some read 'model'.
    """
    for part in configs.dicts(model):
        if ('checkpoint' in part and configs.class_name(part.get('type')) in
                ('Pretrained', 'PretrainedInit')):
            check_checkpoint(part['checkpoint'], weights=False)


def check_fit(cfg: Config, model: nn.Module, whole: bool = False) -> None:
    """Asks a model whether it can load the weights in ``load_from``.

    mmengine loads those that fit, however few, and leaves the others random.
    With ``whole``, and when resuming, none may be missing.
    """
    path = _local_source(cfg)
    if path is None:
        return
    content = checkpoints.read(path, whole=False)
    hooks = [configs.class_name(hook.get('type'))
             for hook in cfg.get('custom_hooks') or []]
    for what, arm, there, hook in (
            ('orthogonal maps', 'orthogonal', 'orthogonal' in content,
             'OrthogonalHook'),
            ('LpSGD', 'lp_sgd', _is_of_lp_sgd(content), 'LpSGDHook')):
        if cfg.get('resume') and there and hook not in hooks:
            raise ValueError(
                f"checkpoint '{path}' was saved with {what}, which this run "
                f'does not have; add --with {arm} (with the settings that the '
                'run was begun with), or start from its weights with '
                'load_from and without --resume')
    problem = _misfit(path, unwrapped(model), whole or bool(
        cfg.get('resume')))
    if problem is not None:
        raise ValueError(
            f"checkpoint '{path}' is of another model than the config's, "
            f'because {problem}; give one of this model, or the config that '
            'it was trained with')


def _is_of_lp_sgd(content: Any) -> bool:
    groups = (content.get('optimizer') or {}).get('param_groups') or []
    return any(group.get('p') is not None for group in groups)


def _local_source(cfg: Config) -> str | None:
    """The local checkpoint from which a run will start, if any."""
    path = cfg.get('load_from')
    return (osp.expanduser(path) if path and path != zoo.FROM_ZOO
            and is_local(path) else None)


def _misfit(path: str, model: nn.Module, whole: bool) -> str | None:
    """Why a checkpoint does not fit a model; None if it does.

    With ``whole`` (a resume, a test) all trained weights must be there. Other
    runs may begin with a part of them, such as a backbone's.

    The weights are loaded to find out, because the model's hooks may rename
    or resize them (position embeddings, say). The run loads them again.
    """
    try:
        load_checkpoint(model, path, map_location='cpu', strict=True)
        return None
    except RuntimeError as error:  # its message is all that mmengine gives
        said = str(error)
    found = re.search('missing keys in source state_dict: (.*)', said)
    missing = set(found[1].split(', ')) if found else set()
    tensors = {name: tensor for name, tensor in saved_tensors(model).items()
               if 'num_batches_tracked' not in name}
    if not whole:
        other = set(re.findall(r'size mismatch for (\S+):', said))
        common = tensors.keys() - missing - other
        return None if common else (
            'they have no weight of one name and size in common')
    for name, parameter in tensors.items():
        if (name in missing and isinstance(parameter, nn.Parameter)
                and parameter.requires_grad):
            return f"it lacks '{name}'"
    sizes = re.search(r'size mismatch for (\S+): (.*?)\.?$', said, re.M)
    return f"of '{sizes[1]}' in it: {sizes[2]}" if sizes else None

"""Finds configs by path or zoo name, and puts PSW into a stock config."""
import difflib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config, ConfigDict

# The frameworks whose zoos have names, and what pip calls them.
FRAMEWORKS = {
    'mmdet': 'mmdet',
    'mmseg': 'mmsegmentation',
    'mmpretrain': 'mmpretrain',
}
TECHNIQUES = ('pswa', 'pwalks', 'pswm')

PSW_WRAPPERS = {
    'OptimWrapper': 'mmpsw.PSWOptimWrapper',
    'AmpOptimWrapper': 'mmpsw.PSWAmpOptimWrapper',
    'PSWOptimWrapper': 'mmpsw.PSWOptimWrapper',
    'PSWAmpOptimWrapper': 'mmpsw.PSWAmpOptimWrapper',
}
AMP_WRAPPERS = {
    'OptimWrapper': 'AmpOptimWrapper',
    'AmpOptimWrapper': 'AmpOptimWrapper',
    'PSWOptimWrapper': 'mmpsw.PSWAmpOptimWrapper',
    'PSWAmpOptimWrapper': 'mmpsw.PSWAmpOptimWrapper',
}
_CONFIG_SUFFIXES = ('.py', '.json', '.yml', '.yaml')
_WRAPPER_SCOPES = ('mmengine', 'mmpsw', *FRAMEWORKS)


def resolve_config(name: str | Path) -> str:
    """Returns the path of a config.

    Args:
        name: A path, or a zoo name: ``mmdet::``, ``mmseg::`` or
            ``mmpretrain::`` and a path in that framework's ``configs/``, with
            or without ``.py``.

    Raises:
        ValueError: There is no such config. The message is one line, with the
            right name where the given one is a near miss.
    """
    name = str(name)
    if '::' in name:
        return str(_resolve_zoo_name(name))
    path = Path(name).expanduser()
    if path.is_file() and path.suffix in _CONFIG_SUFFIXES:
        return str(path)
    if path.is_dir():
        raise ValueError(f"config '{name}' is a folder; give a file in it")
    if path.is_file():
        raise ValueError(
            f"config '{name}' cannot be read, because its name does not end "
            f'in one of {", ".join(_CONFIG_SUFFIXES)}; give a config file')
    raise ValueError(f"config '{name}' does not exist; {_path_advice(path)}")


def load_config(name: str | Path) -> Config:
    """Reads a config by path or zoo name.

    Raises:
        ValueError: There is no such config, or it cannot be read.
    """
    path = resolve_config(name)
    try:
        return Config.fromfile(path)
    # A config is a program of the user's: anything can go wrong in it.
    except Exception as error:
        raise ValueError(f"config '{name}' cannot be read: "
                         f'{type(error).__name__}: {error}') from error


def psw_fragment(name: str | Path) -> dict:
    """Returns the ``psw`` settings that ``--psw`` names.

    Args:
        name: ``pswa``, ``pwalks``, ``pswm``, or the path of a config file
            that defines ``psw``.

    Raises:
        ValueError: No such technique or file, or a file without ``psw``.
    """
    name = str(name)
    if name.lower() in TECHNIQUES:
        path = _fragment_folder() / f'{name.lower()}.py'
    elif Path(name).expanduser().is_file():
        path = Path(name)
    else:
        raise ValueError(
            f"psw '{name}' is neither a technique nor a file; give "
            f'{", ".join(TECHNIQUES)}, or the path of a file that defines psw'
            f'{_did_you_mean(_close(name.lower(), TECHNIQUES))}')
    psw = load_config(path).get('psw')
    if not isinstance(psw, dict):
        raise ValueError(f"'{path}' does not define psw; write in it, for "
                         "example, psw = dict(type='PWALKS', last=0.25)")
    return psw.to_dict()


def psw_name(name: str | Path) -> str:
    """Returns what a run with this ``--psw`` is called: ``pwalks``."""
    return Path(str(name)).stem.lower()


def arm_fragment(name: str | Path) -> Config:
    """Returns the settings that ``--arm`` names.

    Args:
        name: The name of a file in ``configs/_base_/methods`` or
            ``configs/_base_/methods``, or the path of such a file: a config
            fragment with ``psw``, ``custom_hooks`` and any other settings.

    Raises:
        ValueError: No such arm or file.
    """
    name = str(name)
    arms = known_arms()
    if name in arms:
        return load_config(arms[name])
    if Path(name).expanduser().is_file():
        return load_config(name)
    raise ValueError(
        f"arm '{name}' is neither known nor a file; give one of "
        f'{", ".join(arms)}, or the path of a file with the settings that it '
        f'adds to the config{_did_you_mean(_close(name, arms))}')


def known_arms() -> dict[str, Path]:
    """The arms that have a name, and their files."""
    files = sorted(_fragment_folder().rglob('*.py'), key=lambda p: p.stem)
    return {path.stem: path for path in files}


# interim: the commands' branch has its own
known_methods, load_fragment = known_arms, arm_fragment


def apply_arm(cfg: Config, arm: Config) -> None:
    """Puts an arm's settings into a config, in place.

    Its ``psw`` replaces that of the config; its hooks are left for
    :func:`add_arm_hooks`; all else is merged as ``--cfg-options`` is.

    Raises:
        ValueError: As in :func:`apply_psw`.
    """
    rest = {key: value for key, value in arm.to_dict().items()
            if key not in ('psw', 'custom_hooks')}
    cfg.merge_from_dict(rest)
    if 'psw' in arm:
        set_psw(cfg, arm.psw)


def add_arm_hooks(cfg: Config, arm: Config) -> None:
    """Puts an arm's hooks behind those of a config, and PSWHook in front."""
    own = [ConfigDict(hook) for hook in arm.get('custom_hooks', [])]
    if own:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), *own]
    if 'psw' in arm:
        set_psw(cfg)
        add_psw_hook(cfg)


def apply_psw(cfg: Config, psw: Mapping) -> None:
    """Puts PSW into a config, in place; an earlier psw is replaced.

    Args:
        cfg: A whole config, of any of the frameworks.
        psw: The settings, ``dict(type='PWALKS', last=0.25)``.

    Raises:
        ValueError: The config has no optimizer wrapper, or one that PSW does
            not extend, or a FlexibleRunner.
    """
    arm = Config(dict(psw=psw))
    apply_arm(cfg, arm)
    add_arm_hooks(cfg, arm)


def set_psw(cfg: Config, psw: Mapping | None = None) -> None:
    """Makes every optimizer wrapper of a config a PSW one, in place.

    Args:
        cfg: A whole config.
        psw: The settings. None keeps what the wrappers have: to be called
            after ``--cfg-options``, which may have changed their type.

    Raises:
        ValueError: As in :func:`apply_psw`.
    """
    check_strategy(cfg)
    set_wrapper_types(cfg, PSW_WRAPPERS, 'PSW')
    if psw is None:
        return
    for _, wrapper in optim_wrappers(cfg):
        wrapper['psw'] = ConfigDict(psw)
    if 'psw' in cfg:  # a leaf's own: the saved config should not contradict
        cfg.psw = ConfigDict(psw)


def check_strategy(cfg: Config) -> None:
    """Refuses PSW where FSDP, DeepSpeed or the like trains.

    To be called before anything is built: their packages may be missing.

    Raises:
        ValueError: The config's runner is a FlexibleRunner.
    """
    if _class_name(cfg.get('runner_type')) == 'FlexibleRunner':
        from mmpsw.engine.averaging.strategies import refuse_flexible_runner
        strategy = cfg.get('strategy') or {}
        kind = strategy.get('type') or 'SingleDeviceStrategy'
        raise refuse_flexible_runner(_class_name(kind))


def add_psw_hook(cfg: Config) -> None:
    """Puts PSWHook in front of a config's custom hooks, once."""
    hooks = list(cfg.get('custom_hooks') or [])
    if 'PSWHook' not in [_class_name(hook.get('type')) for hook in hooks]:
        cfg.custom_hooks = [dict(type='mmpsw.PSWHook'), *hooks]


def set_wrapper_types(cfg: Config, types: Mapping[str, str],
                      feature: str) -> None:
    """Replaces the type of each optimizer wrapper of a config, in place.

    Args:
        cfg: A whole config.
        types: The new type for each known one.
        feature: What asks for it, for the message.

    Raises:
        ValueError: A wrapper's type is not in ``types``.
    """
    for key, wrapper in optim_wrappers(cfg):
        name = _class_name(wrapper.get('type') or 'OptimWrapper')
        if name not in types:
            raise ValueError(
                f"{feature} cannot be used with {key}.type='{name}', because "
                'it extends only OptimWrapper and AmpOptimWrapper; set '
                f"--cfg-options {key}.type=OptimWrapper, or train without")
        wrapper['type'] = types[name]


def optim_wrappers(cfg: Config) -> list[tuple[str, ConfigDict]]:
    """Returns the optimizer wrappers of a config, with their dotted keys.

    One, or several where a constructor builds an OptimWrapperDict.

    Raises:
        ValueError: There is none.
    """
    outer = cfg.get('optim_wrapper')
    if isinstance(outer, dict) and 'optimizer' in outer:
        return [('optim_wrapper', outer)]
    inner = [(f'optim_wrapper.{key}', value)
             for key, value in (outer or {}).items()
             if isinstance(value, dict) and 'optimizer' in value]
    if not inner:
        raise ValueError(
            'the config has no optim_wrapper with an optimizer, so nothing in '
            "it is trained; write optim_wrapper = dict(type='OptimWrapper', "
            "optimizer=dict(type='SGD', lr=0.01))")
    return inner


def is_amp(wrapper: Mapping) -> bool:
    """Whether an optimizer wrapper's config asks for mixed precision."""
    return _class_name(wrapper.get('type')) in ('AmpOptimWrapper',
                                                'PSWAmpOptimWrapper')


def is_psw(wrapper: Mapping) -> bool:
    """Whether an optimizer wrapper's config is one of PSW."""
    return _class_name(wrapper.get('type')) in ('PSWOptimWrapper',
                                                'PSWAmpOptimWrapper')


def _class_name(kind: object) -> str:
    """The bare class name of a ``type``, whose scope is one of ours.

    Configs in the newer style give the class itself.
    """
    if not isinstance(kind, str):
        return getattr(kind, '__name__', str(kind))
    scope, _, name = kind.rpartition('.')
    return name if scope.split('.')[0] in ('', *_WRAPPER_SCOPES) else kind


def _resolve_zoo_name(name: str) -> Path:
    package, _, inner = name.partition('::')
    root = _zoo_folder(package, name)
    for candidate in (root / inner, root / f'{inner}.py'):
        if candidate.is_file():
            return candidate
    near = [f'{package}::{match}' for match in _close_zoo_names(root, inner)]
    advice = _did_you_mean(near) or (
        f'; its names are {package}::<folder>/<file>.py, for example '
        f'{package}::{next(_zoo_names(root))}')
    raise ValueError(f"{package} has no config '{inner}'{advice}")


def _zoo_folder(package: str, name: str) -> Path:
    if package not in FRAMEWORKS:
        near = _did_you_mean(_close(package, FRAMEWORKS)[:1])
        raise ValueError(f"'{name}' names no known model zoo; give one of "
                         f'{", ".join(FRAMEWORKS)}{near}')
    spec = find_spec(package)
    if spec is None:
        raise ValueError(f"'{name}' cannot be found, because {package} is not "
                         f'installed; pip install {FRAMEWORKS[package]}')
    root = Path(spec.origin).parent / '.mim' / 'configs'
    if not root.is_dir():
        raise ValueError(f"'{name}' cannot be found, because {root} does not "
                         f'exist; reinstall {FRAMEWORKS[package]} from its '
                         "wheel, or give the config's path")
    return root


def _zoo_names(root: Path) -> Iterator[str]:
    """The configs below a zoo's folder, without the fragments."""
    for path in sorted(root.rglob('*.py')):
        if '_base_' not in path.parts:
            yield path.relative_to(root).as_posix()


def _close_zoo_names(root: Path, name: str) -> list[str]:
    """The zoo's names nearest to a wrong one, whose folder may lack."""
    names = list(_zoo_names(root))
    stem = Path(name).stem
    stems = {Path(other).stem: other for other in names}
    if stem in stems:
        return [stems[stem]]
    near = _close(name.removesuffix('.py') + '.py', names)
    near += [stems[other] for other in _close(stem, stems)]
    return list(dict.fromkeys(near))[:2]


def _path_advice(path: Path) -> str:
    """What to do about a config's path that does not exist."""
    for package in FRAMEWORKS:
        spec = find_spec(package)
        root = spec and Path(spec.origin).parent / '.mim' / 'configs'
        for inner in (path, path.with_name(path.name + '.py')):
            # An absolute path would escape the zoo's folder.
            if root and not path.is_absolute() and (root / inner).is_file():
                return f"did you mean '{package}::{inner.as_posix()}'?"
    folder = path.parent
    if not folder.is_dir():
        return (f"nor does '{folder}'; give a path from the current "
                'folder, or a zoo name such as '
                'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    configs = [other for other in folder.iterdir()
               if other.suffix in _CONFIG_SUFFIXES]
    near = _close(path.stem, [other.stem for other in configs])
    if near:
        names = {other.stem: other.as_posix() for other in configs}
        return f"did you mean '{names[near[0]]}'?"
    return ('give the path of a config, or a zoo name such as '
            'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')


def _close(name: str, names) -> list[str]:
    return difflib.get_close_matches(name, list(names), n=2, cutoff=0.6)


def _did_you_mean(near: list[str]) -> str:
    quoted = ' or '.join(f"'{name}'" for name in near)
    return f'; did you mean {quoted}?' if near else ''


def _fragment_folder() -> Path:
    """configs/_base_/methods of a checkout, or of an installed package."""
    package = Path(__file__).resolve().parent
    for root in (package.parent, package / '.mim'):
        folder = root / 'configs' / '_base_' / 'methods'
        if folder.is_dir():
            return folder
    raise ValueError(
        f"the fragments of --psw are not beside the package '{package}'; "
        'give the path of a file that defines psw, or install mmpsw from its '
        'checkout with pip install -e .')

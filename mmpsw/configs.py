"""Names of configs, and fragments that go into any config of the zoos."""
import copy
import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.config.utils import MODULE2PACKAGE

from mmpsw.compatibility import distribution

# mmengine has a fixed list of packages for `_base_ = 'mmdet::...'`. It is told
# a module, because the metadata of an editable install lie elsewhere, and as
# mmseg is brought by mmsegmentation or by onedl-mmsegmentation.
MODULE2PACKAGE.update(mmpsw='mmpsw.configs', mmseg='mmseg')

# The frameworks whose zoos have names.
FRAMEWORKS = ('mmdet', 'mmseg', 'mmpretrain')
_SUFFIXES = ('.py', '.json', '.yml', '.yaml')
_SCOPES = ('', 'mmengine', 'mmpsw', *FRAMEWORKS)
# What a Runner, or the frameworks' tools, read from a config.
_TOP_LEVEL = (
    'auto_scale_lr', 'custom_hooks', 'custom_imports', 'data_preprocessor',
    'default_hooks', 'default_scope', 'env_cfg', 'experiment_name',
    'launcher', 'load_from', 'log_level', 'log_processor', 'model',
    'model_wrapper_cfg', 'optim_wrapper', 'param_scheduler', 'randomness',
    'resume', 'test_cfg', 'test_dataloader', 'test_evaluator', 'train_cfg',
    'train_dataloader', 'tta_model', 'tta_pipeline', 'val_cfg',
    'val_dataloader', 'val_evaluator', 'visualizer', 'work_dir')
_WRAPPERS = ('OptimWrapper', 'AmpOptimWrapper', 'PSWOptimWrapper',
             'PSWAmpOptimWrapper')
# The methods that a list begins with; all others follow by their names.
_FIRST = ('psw', 'extend', 'pswa', 'pwalks', 'pswm', 'baseline', 'ema',
          'switch_ema', 'swa', 'swa_finetune', 'lawa', 'lookahead',
          'schedule_free', 'schedule_free_adamw')
# What fragments add to each other, or to the config, in a way of its own.
_APART = ('psw', 'custom_hooks', 'model_transforms')


def resolve_config(name: str | Path) -> str:
    """Returns the path of a config, given by its path or zoo name.

    A zoo name is ``mmdet::``, ``mmpose::``, ``mmpsw::`` or so, and a path in
    that package's ``configs/``, with or without ``.py``.

    Raises:
        ValueError: There is none; it asks for a name that is near.
    """
    name = str(name)
    if '::' in name:
        return str(_resolve_zoo_name(name))
    path = Path(name).expanduser()
    if path.is_file() and path.suffix in _SUFFIXES:
        return str(path)
    if path.exists():
        raise ValueError(f"config '{name}' is no file whose name ends in "
                         f'{", ".join(_SUFFIXES)}; give one')
    raise ValueError(f"config '{name}' does not exist; give a path, or a zoo "
                     'name such as mmdet::retinanet/retinanet_r50_fpn_1x_coco'
                     f'{_near_path(path)}')


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


def known_methods() -> dict[str, Path]:
    """The fragments that have a name, such as ``pswa``."""
    # In a checkout, .mim is a link.
    folder = Path(__file__).parent / '.mim' / 'configs' / '_base_' / 'methods'
    return {path.relative_to(folder).with_suffix('').as_posix(): path
            for path in sorted(folder.rglob('*.py'))}


def describe_methods() -> str:
    """A line on each method that has a name: what its file says first."""
    lines = []
    known = known_methods()
    for name in sorted(known, key=_rank):
        path = known[name]
        comment = re.match(r'(?:#.*\n)*', path.read_text(encoding='utf-8'))[0]
        text = ' '.join(comment.replace('#', ' ').split())
        first = re.split('(?<=[.])(?= [a-zA-Z])', text)[0]
        lines.append(f'{name:<20} {first}')
    return '\n'.join(lines)


def _rank(name: str) -> int:
    """Psw and its family first, then other averages, then the rest."""
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def split_arm(arm: str) -> list[str]:
    """The parts of ``pwalks:last=0.5+ema``; a file's name may hold a +."""
    head = arm.partition(':')[0]
    return [arm] if '+' in head and Path(head).is_file() else re.split(
        r'\+(?=[^\W\d]|[./~])', arm)  # not that of 1e+3


def load_fragment(name: str | Path) -> Config:
    """Reads the settings that ``--with`` a known name, or a path, adds.

    ``NAME:KEY=VALUE,KEY=VALUE`` changes settings in them: a key of ``psw``,
    of a hook, a transformation, the optimizer or the schedule that it holds,
    or with dots, of the config (``baseline:optim_wrapper.optimizer.lr=0.1``).

    Raises:
        ValueError: There is none, it cannot be read, or has no such setting.
    """
    head, _, settings = str(name).partition(':')
    known = known_methods()
    path = known.get(head.lower(), Path(head).expanduser())
    if not path.exists():
        raise ValueError(
            f"'{head}' is neither a known method nor a file"
            f'{_near(head.lower(), known)}; --with list shows all methods; '
            'the path of a file with the settings that it adds to the config '
            'will do, too')
    fragment = load_config(path)
    # Cut where a key follows: a value may hold a comma.
    for pair in re.split(r',(?=[\w.]+=)', settings) if settings else ():
        _change(fragment, pair, str(name))
    return fragment


def method_name(arm: str | Path) -> str:
    """Returns what a run with this arm is called: ``pwalks:last=0.5``."""
    heads = (part.partition(':') for part in split_arm(str(arm)))
    return '+'.join(Path(head).stem.lower() + colon + settings
                    for head, colon, settings in heads)


def folder_name(method: str) -> str:
    """The same as the name of a folder, which no shell takes apart."""
    return re.sub(r'[^\w.+-]+', '_', method).strip('_')


def apply_fragments(cfg: Config, fragments: Sequence[Config],
                    amp: bool = False,
                    options: Mapping[str, Any] | None = None) -> list[str]:
    """Puts fragments, mixed precision and options into a config, in place.

    The options come after the settings, so that they can change these, and
    before the hooks, so that ``custom_hooks.0`` is the config's own first.

    Of several optimizers ``optim_wrapper.averaged``, a list of their names,
    says which ones ``psw`` is for; without it, all.

    A fragment whose average is validated takes the place of the average that
    the config brings (83 of the zoos' configs have an EMAHook).

    Args:
        cfg: A whole config. A fragment's ``psw`` replaces one that it has.
        fragments: Their hooks are appended in order, and so are their
            ``model_transforms``, which change the model after it is built
            (:func:`mmpsw.models.build_transformed`). All else is merged.
        amp: Whether to train with mixed precision.
        options: Those of ``--cfg-options``, with dotted keys.

    Returns:
        Sentences on what was left out, for the log.

    Raises:
        ValueError: The fragments do not fit each other or the config.
    """
    for one, other in combinations(fragments, 2):
        key = _conflict(one, other)
        if key:
            raise ValueError(
                f"'{method_name(one.filename)}' and "
                f"'{method_name(other.filename)}' cannot be used together, "
                f'because both set {key}; leave one out')
    psw = [fragment.psw for fragment in fragments if 'psw' in fragment]
    for fragment in fragments:
        settings = {key: value for key, value in fragment.to_dict().items()
                    if key not in _APART}
        merge(cfg, settings, f"'{method_name(fragment.filename)}'")
        if fragment.get('model_transforms'):
            _transform_model(cfg, fragment.model_transforms)
    if psw or amp:
        for key, wrapper in optim_wrappers(cfg):
            if psw and _is_averaged(cfg, key):
                wrapper['psw'] = copy.deepcopy(psw[0])
            if amp:
                wrapper.setdefault('loss_scale', 'dynamic')
    if psw and 'psw' in cfg:  # the saved config should not contradict itself
        cfg.psw = copy.deepcopy(psw[0])
    merge(cfg, options or {}, '--cfg-options')
    if psw or amp:
        _set_wrapper_types(cfg, bool(psw), amp)
    own = cfg.get('custom_hooks') or []
    added = [hook for fragment in fragments
             for hook in fragment.get('custom_hooks') or []]
    replaced = _averaging(own) if _averaging(added) or psw and any(
        shows_average(wrapper) for _, wrapper in optim_wrappers(cfg)) else []
    hooks = [*(hook for hook in own if hook not in replaced), *added]
    if psw and 'PSWHook' not in [class_name(h.get('type')) for h in hooks]:
        hooks.insert(0, ConfigDict(type='mmpsw.PSWHook'))
    if hooks or replaced:
        cfg.custom_hooks = copy.deepcopy(hooks)
    return [f"The config's own {class_name(hook.get('type'))} is left out, "
            'because two averages cannot both be validated: '
            f'{" and ".join(method_name(f.filename) for f in fragments)} '
            'takes its place.' for hook in replaced]


def merge(cfg: Config, settings: Mapping[str, Any], source: str) -> None:
    """Merges settings in place; a ValueError where a key leads nowhere."""
    known = {*cfg.keys(), *_TOP_LEVEL}
    for name in {str(key).partition('.')[0] for key in settings} - known:
        # A key of one's own may be read by a hook; a slip is near a known one.
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if near:
            raise ValueError(f"{source} names '{name}', which neither the "
                             f"config nor a Runner has; did you mean "
                             f"'{near[0]}'?")
    try:
        cfg.merge_from_dict(dict(settings))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{source} does not fit the config: {error}') from error


def optim_wrappers(cfg: Config) -> list[tuple[str, ConfigDict]]:
    """Returns a config's optimizer wrappers and their dotted keys.

    Raises:
        ValueError: There is none.
    """
    outer = cfg.get('optim_wrapper')
    if isinstance(outer, dict) and 'optimizer' in outer:
        return [('optim_wrapper', outer)]
    # Several, where a constructor builds an OptimWrapperDict.
    inner = [(f'optim_wrapper.{key}', value)
             for key, value in (outer or {}).items()
             if isinstance(value, dict) and 'optimizer' in value]
    if not inner:
        raise ValueError(
            'the config has no optim_wrapper with an optimizer, so nothing in '
            "it is trained; write optim_wrapper = dict(type='OptimWrapper', "
            "optimizer=dict(type='SGD', lr=0.01))")
    return inner


def dicts(node: object) -> Iterator[dict]:
    """All dicts in a part of a config, the outer ones first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from dicts(item)


def is_amp(wrapper: Mapping) -> bool:
    """Whether an optimizer wrapper's config asks for mixed precision."""
    return class_name(wrapper.get('type')) in _WRAPPERS[1::2]


def is_psw(wrapper: Mapping) -> bool:
    """Whether an optimizer wrapper's config is one of PSW."""
    return class_name(wrapper.get('type')) in _WRAPPERS[2:]


def shows_average(wrapper: Mapping) -> bool:
    """Whether PSW validates another average than the live weights."""
    psw = wrapper.get('psw') or {}
    return (psw.get('write_back') is False
            or psw.get('evaluate') == 'average')


def class_name(kind: object) -> str:
    """The bare class name of a ``type``, whose scope is one of ours."""
    if not isinstance(kind, str):  # a class, in configs of the newer style
        return getattr(kind, '__name__', str(kind))
    scope, _, name = kind.rpartition('.')
    return name if scope.split('.')[0] in _SCOPES else kind


def framework(cfg: Config) -> str | None:
    """The package of a config's default scope, or of its model's class.

    Configs of the newer style have classes for types, and no scope.
    """
    model = cfg.get('model') or {}
    kind = model.get('stock_type', model.get('type'))
    scope = cfg.get('default_scope')
    if scope is None and isinstance(kind, type):
        return kind.__module__.partition('.')[0]
    return scope


def check_strategy(cfg: Config) -> None:
    """Refuses PSW, by a ValueError, where FSDP, DeepSpeed or so trains."""
    if class_name(cfg.get('runner_type')) == 'FlexibleRunner':
        from mmpsw.engine.averaging.hook import flexible_refused
        kind = (cfg.get('strategy') or {}).get('type', 'SingleDeviceStrategy')
        raise flexible_refused(class_name(kind))


def _averaging(hooks: Iterable[Mapping]) -> list[Mapping]:
    """Those that put an average into the model to validate it."""
    from mmpsw.engine.swapping import SWAPPING  # torch comes with it
    return [hook for hook in hooks if class_name(hook.get('type')) in SWAPPING]


def _change(fragment: Config, pair: str, name: str) -> None:
    """Changes one setting of a fragment, in place."""
    key, equals, text = pair.partition('=')
    if not equals:
        raise ValueError(f"'{name}' cannot be read, because '{pair}' is no "
                         'KEY=VALUE; write for example pwalks:last=0.5')
    value = DictAction._parse_iterable(text)
    if '.' in key:
        merge(fragment, {key: value}, f"'{name}'")
        return
    psw = [fragment.psw] if 'psw' in fragment else []
    parts = [*psw, *fragment.get('custom_hooks', ()),
             *fragment.get('model_transforms', ()),
             *(wrapper.optimizer for _, wrapper in (
                 optim_wrappers(fragment) if 'optim_wrapper' in fragment
                 else ())), *fragment.get('param_scheduler', ())]
    # Of psw all keys are looked at later.
    owners = [part for part in parts if key in part] or psw or [
        part for part in parts if key in _parameters(part)]
    if not owners:
        known = {k for part in parts for k in [*part, *_parameters(part)]}
        raise ValueError(
            f"'{name}' has no setting '{key}'; give one of "
            f'{", ".join(sorted(known - {"type", "_delete_"}))}, or a key of '
            'the config with dots' if known else
            f"'{name}' has no settings; give keys of the config with dots, "
            'such as optim_wrapper.optimizer.lr=0.1')
    owners[0][key] = value


def _parameters(part: Mapping) -> set[str]:
    """What the class of a hook, a transformation or an optimizer takes."""
    from mmpsw import registry
    found: set[str] = set()
    for kind in (part.get('type'), part.get('ema_type')):
        owners = (registry.HOOKS, registry.MODELS, registry.OPTIMIZERS)
        built = next(filter(None, (
            owner.get(kind) for owner in owners if kind)), None)
        for one in getattr(built, '__mro__', (built, ))[:-1] or (built, ):
            if callable(one):
                found |= {name for name, parameter in inspect.signature(
                    one).parameters.items() if parameter.kind not in (
                        parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)}
    return found - {'self', 'model', 'params', 'defaults'}


def _conflict(one: Mapping, other: Mapping, outer: str = '') -> str:
    """The first key that both set, and not to the same; empty if none."""
    for key in sorted(set(one.keys()) & set(other.keys()) - {*_APART[1:]}):
        whole = f'{outer}{key}' == 'psw'  # a technique's settings are one
        if isinstance(one[key], dict) and isinstance(
                other[key], dict) and not whole:
            inner = _conflict(one[key], other[key], f'{outer}{key}.')
            if inner:
                return inner
        elif whole or one[key] != other[key]:
            return f'{outer}{key}'
    return ''


def _transform_model(cfg: Config, transforms: Sequence[Mapping]) -> None:
    """Names what changes the built model, unless the config does already."""
    model = cfg.model
    if class_name(model.type) != 'TransformedModel':
        stock = model.type
        if not isinstance(stock, str):  # a class, which a dump cannot write
            stock = f'{stock.__module__}.{stock.__qualname__}'
        model.update(stock_type=stock, type='mmpsw.TransformedModel',
                     transforms=[])
    for transform in transforms:
        if transform not in model.transforms:
            model.transforms.append(copy.deepcopy(transform))


def _is_averaged(cfg: Config, key: str) -> bool:
    names = cfg.optim_wrapper.get('averaged')
    return names is None or key.rpartition('.')[2] in names


def _set_wrapper_types(cfg: Config, psw: bool, amp: bool) -> None:
    if psw:
        check_strategy(cfg)
    for key, wrapper in optim_wrappers(cfg):
        name = class_name(wrapper.get('type') or 'OptimWrapper')
        if name not in _WRAPPERS:
            raise ValueError(
                f"{'PSW' if psw else '--amp'} cannot be used with "
                f"{key}.type='{name}', because it extends only OptimWrapper "
                f'and AmpOptimWrapper; set --cfg-options '
                f'{key}.type=OptimWrapper, or train without')
        averages = psw and _is_averaged(cfg, key)
        prefix = 'mmpsw.PSW' if averages or 'PSW' in name else ''
        infix = 'Amp' if amp or 'Amp' in name else ''
        wrapper['type'] = f'{prefix}{infix}OptimWrapper'


def _resolve_zoo_name(name: str) -> Path:
    package, _, inner = name.partition('::')
    root = _zoo(package)
    if root is None:
        known = package in MODULE2PACKAGE
        raise ValueError(
            f"'{name}' cannot be found, because {package} is not installed "
            f'with its configs; '
            + (f'pip install {pip_name(package)}, or ' if known else '')
            + "give the config's path"
            + ('' if known else _near(package, MODULE2PACKAGE)))
    for path in (root / inner, root / f'{inner}.py'):
        if path.is_file():
            return path
    # mmengine's names lead to fragments too, which nobody trains.
    names = [f'{package}::{path.relative_to(root).as_posix()}'
             for path in sorted(root.rglob('*.py'))
             if '_base_' not in path.parts]
    raise ValueError(
        f"{package} has no config '{inner}'; its names are "
        f'{package}::<folder>/<file>.py{_near(inner, names)}')


def pip_name(module: str) -> str:
    """What pip calls a package of OpenMMLab."""
    return (distribution(module) if module in FRAMEWORKS else
            MODULE2PACKAGE[module])


def _zoo(package: str) -> Path | None:
    """The folder of a framework's configs, where it is installed."""
    spec = find_spec(package) if package.isidentifier() else None
    root = (spec and spec.origin
            and Path(spec.origin).parent / '.mim' / 'configs')
    return root if root and root.is_dir() else None


def _near_path(path: Path) -> str:
    """What may be meant by a path that does not exist."""
    # As it is called in a checkout.
    name = Path(*path.parts[path.parts[:1] == ('configs', ):])
    for package in (*FRAMEWORKS, 'mmpsw'):
        root = _zoo(package)
        for inner in (name, name.with_name(f'{name.name}.py')):
            # An absolute path would escape the zoo's folder.
            if root and not name.is_absolute() and (root / inner).is_file():
                return f"; did you mean '{package}::{inner.as_posix()}'?"
    return _near(path.name, [other.as_posix() for other in path.parent.glob(
        '*') if other.suffix in _SUFFIXES])


def _near(name: str, others: Iterable[str]) -> str:
    """Asks for the one whose last part is nearest; empty if none is near."""
    stems = {Path(other).stem: other for other in others}
    match = difflib.get_close_matches(Path(name).stem, stems, n=1)
    return f"; did you mean '{stems[match[0]]}'?" if match else ''

"""Read what a run left in its work directory.

mmengine writes one JSON object a line to
``WORK_DIR/TIMESTAMP/vis_data/scalars.json``::

    {"lr": 0.01, "time": 0.2, "loss": 1.3, "iter": 50, "step": 50, ...}
    {"coco/bbox_mAP": 0.1, ..., "data_time": 0.01, "time": 0.05, "step": 1}

A training line has the key ``iter``; a validation line has not, and its
``step`` is the epoch (the iteration with ``log_metric_by_epoch=False``).
Every start makes a new timestamp directory, so that a resumed run is spread
over several of them.
"""
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from mmengine.config import Config

__all__ = [
    'MissingRunError', 'Run', 'expected_metric', 'full_name',
    'higher_is_better', 'is_by_epoch', 'primary_metric', 'read_run'
]

# What the zoos rank models by, by the evaluator that logs it. It is often
# not the first thing that it logs: mmseg begins with aAcc, and mmdet with the
# precision of each class where it is asked for that.
RANKED_BY = {
    'IoUMetric': 'mIoU',
    'CocoMetric': 'coco/bbox_mAP',
    'LVISMetric': 'lvis/bbox_AP',
    'VOCMetric': 'pascal_voc/mAP',
    'CocoPanopticMetric': 'coco_panoptic/PQ',
    'Accuracy': 'accuracy/top1',
}
_NOT_METRICS = ('step', 'time', 'data_time')


class MissingRunError(ValueError):
    """A directory holds no run, or no curve of the wanted metric yet."""


@dataclass(frozen=True)
class Run:
    """One run, as its work directory tells it.

    Attributes:
        folder: The work directory.
        config: The resolved config that mmengine saved.
        config_path: The file that it was read from.
        validations: The metrics of each validation, by its step: the epoch,
            or the iteration, in ascending order. mmdet logs none while a
            detector finds no box.
        time: Seconds per training iteration, with the loading of the data
            and without validation: the median; None where none was logged.
        memory: Peak memory of the accelerator in MB; None on a CPU.
    """

    folder: Path
    config: Config
    config_path: Path
    validations: dict[int, dict[str, float]]
    time: float | None = None
    memory: float | None = None

    @property
    def logged(self) -> list[str]:
        """All the metrics that its validations logged."""
        return list(dict.fromkeys(
            key for metrics in self.validations.values() for key in metrics))

    @property
    def unit(self) -> str:
        """What a step counts, 'epoch' or 'iteration'."""
        logs_epochs = _hook(self.config, 'logger').get(
            'log_metric_by_epoch', True)
        return ('epoch' if logs_epochs and is_by_epoch(self.config)
                else 'iteration')

    @property
    def max_steps(self) -> int | None:
        """Where it ends; None where the config counts in another unit."""
        key = 'max_epochs' if self.unit == 'epoch' else 'max_iters'
        return (self.config.get('train_cfg') or {}).get(key)

    @property
    def seed(self) -> int | None:
        """That of the config, else the N of a directory named seed_N."""
        seed = (self.config.get('randomness') or {}).get('seed')
        match = re.fullmatch(r'seed_(\d+)', self.folder.name)
        return int(match[1]) if seed is None and match else seed

    @property
    def checkpoint_hook(self) -> Mapping:
        """The settings of its CheckpointHook, which may rank models."""
        return _hook(self.config, 'checkpoint')


def is_by_epoch(config: Config) -> bool:
    """Whether a config's training loop counts epochs."""
    loop = config.get('train_cfg') or {}
    kind = str(loop.get('type') or '').rpartition('.')[2]
    return bool(loop.get('by_epoch', 'max_iters' not in loop
                         and not kind.startswith('Iter')))


def primary_metric(logged: Sequence[str], checkpoint_hook: Mapping) -> str:
    """The metric that ranks models.

    Args:
        logged: The metrics of a validation; one at least.
        checkpoint_hook: The settings of the run's CheckpointHook.

    Returns:
        What ``save_best`` names, else what the zoos rank by (mIoU,
        coco/bbox_mAP, accuracy/top1, ...), else the first that is logged.
    """
    wanted = [*_save_best(checkpoint_hook), *RANKED_BY.values()]
    return next((name for name in wanted if name in logged), logged[0])


def expected_metric(config: Config) -> str | None:
    """The metric that will rank a config's models, before any is logged.

    Returns:
        As :func:`primary_metric`; None where neither ``save_best`` nor an
        evaluator of the zoos tells.
    """
    evaluators = config.get('val_evaluator') or []
    if isinstance(evaluators, Mapping):
        evaluators = [evaluators]
    kinds = [str(evaluator.get('type')).rpartition('.')[2].strip("'>")
             for evaluator in evaluators]
    known = [RANKED_BY[kind] for kind in kinds if kind in RANKED_BY]
    named = [name for name in _save_best(_hook(config, 'checkpoint'))
             if name != 'auto']
    return next(iter([*named, *known]), None)


def higher_is_better(metric: str, rule: str | None,
                     checkpoint_hook: Mapping) -> bool:
    """How two values of a metric compare.

    Args:
        metric: Its name.
        rule: 'greater', 'less' or None, which asks the hook's settings, and
            then mmengine's own rule for the name.
        checkpoint_hook: The settings of the run's CheckpointHook.

    Raises:
        ValueError: Nobody can say.
    """
    from mmengine.hooks import CheckpointHook  # torch comes with it
    best, rules = _save_best(checkpoint_hook), checkpoint_hook.get('rule')
    rules = [rules] * len(best) if isinstance(rules, str) else rules or []
    own = dict(zip(best, rules))
    keys = {key: checkpoint_hook.get(key)
            for key in ('greater_keys', 'less_keys')}
    try:
        hook = CheckpointHook(
            save_best=metric, rule=rule or own.get(metric, own.get('auto')),
            **keys)
    except ValueError as error:
        raise ValueError(
            f"it is not known whether a higher '{metric}' is better, because "
            'mmengine has no rule for this name; give --rule greater or '
            '--rule less') from error
    return hook.rules[0] == 'greater'


def full_name(metric: str, logged: Sequence[str]) -> str | None:
    """A logged metric by its name, or by its last part (``bbox_mAP``).

    Raises:
        ValueError: Several have that last part.
    """
    found = [name for name in logged if metric in (name, name.split('/')[-1])]
    if len(found) > 1 and metric not in found:
        raise ValueError(f"--metric '{metric}' may mean several metrics; give "
                         f'one of {", ".join(found)}')
    return metric if metric in found else next(iter(found), None)


def read_run(work_dir: str | Path) -> Run:
    """Read the newest run of a mmengine work directory.

    A run that was resumed is joined from its timestamp directories; where
    two of them have the same step, the later one counts.

    Raises:
        MissingRunError: There is none.
        ValueError: A line of its log is broken.
    """
    work_dir = Path(work_dir)
    sessions = _joined_sessions(work_dir)
    training = [line for session in sessions for line in session.train]
    times = [time for session in sessions for time in session.times()]
    return Run(
        folder=work_dir,
        config=sessions[-1].config,
        config_path=sessions[-1].config_path,
        validations=_joined_validations(sessions),
        time=statistics.median(times) if times else None,
        memory=max((line['memory'] for line in training if 'memory' in line),
                   default=None))


@dataclass(frozen=True)
class _Session:
    """The lines of one timestamp directory."""

    config_path: Path
    config: Config
    train: list[dict]
    val: list[dict]

    def times(self) -> list[float]:
        """Without the warming up: the first tenth."""
        logged = [line['time'] for line in self.train if 'time' in line]
        warm_up = min(len(logged) - 1, max(1, len(logged) // 10))
        return logged[max(0, warm_up):]


def _joined_sessions(work_dir: Path) -> list[_Session]:
    """The newest session and those that it was resumed from, oldest first."""
    sessions: list[_Session] = []
    for path in sorted(work_dir.glob('*/vis_data/scalars.json'), reverse=True):
        session = _read_session(path)
        # `Runner.val` alone writes such a file too, but it trains nothing.
        if not session.train:
            continue
        sessions.insert(0, session)
        if not session.config.get('resume', False):
            break
    if not sessions:
        raise MissingRunError(
            f"there is no run in '{work_dir}', because no TIMESTAMP/vis_data/"
            'scalars.json with training lines is there; give the directory '
            'that a run had as --work-dir')
    return sessions


def _read_session(scalars: Path) -> _Session:
    config_path = scalars.with_name('config.py')
    # What a config imports is of no use here, and may not be installed.
    config = Config.fromfile(config_path, import_custom_modules=False)
    lines = _read_lines(scalars)
    by_epoch = _hook(config, 'logger').get('log_metric_by_epoch', True)
    if by_epoch and 'max_iters' in (config.get('train_cfg') or {}):
        lines = _with_iterations(lines, config.train_cfg)
    # `LogProcessor(log_with_hierarchy=True)` writes such prefixes.
    lines = [{re.sub('^(train|val)/', '', key): value
              for key, value in line.items()} for line in lines]
    return _Session(config_path, config,
                    train=[line for line in lines if 'iter' in line],
                    val=[line for line in lines if 'iter' not in line])


def _read_lines(path: Path) -> list[dict]:
    texts = path.read_text(encoding='utf-8').splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            # A run that is killed, or still writing, may leave half a line.
            if number == len(texts):
                break
            raise ValueError(f"line {number} of '{path}' is no JSON "
                             f'({error}); remove it, or train again'
                             ) from error
    return lines


def _with_iterations(lines: list[dict], train_cfg: Mapping) -> list[dict]:
    """Validation lines with the iteration as their step.

    An iteration-based loop whose LoggerHook has its default, the epoch, calls
    every validation's step 0. A validation comes after a multiple of
    ``val_interval``, the first one at or after the training line before it.
    """
    interval = train_cfg.get('val_interval', 1000)
    placed, trained, validated = [], 0, 0
    for line in lines:
        if 'iter' in line:
            trained = line['iter']
        else:
            due = math.ceil(trained / interval) * interval
            validated = min(train_cfg['max_iters'],
                            max(due, validated + interval))
            line = {**line, 'step': validated}
        placed.append(line)
    return placed


def _joined_validations(sessions: Sequence[_Session]) -> dict[int, dict]:
    """Metrics by step.

    What a session begins with is what it was resumed to: whatever an earlier
    one has from that step on did not lead to the final weights.
    """
    joined: dict[int, dict] = {}
    for session in sessions:
        first = session.val[0]['step'] if session.val else math.inf
        joined = {step: line for step, line in joined.items() if step < first}
        joined |= {line['step']: _metrics(line) for line in session.val}
    return dict(sorted(joined.items()))


def _metrics(line: dict) -> dict[str, float]:
    return {key: float(value) for key, value in line.items()
            if key not in _NOT_METRICS and isinstance(value, Real)}


def _hook(config: Config, name: str) -> Mapping:
    return (config.get('default_hooks') or {}).get(name) or {}


def _save_best(checkpoint_hook: Mapping) -> list[str]:
    names = checkpoint_hook.get('save_best') or []
    return [names] if isinstance(names, str) else list(names)

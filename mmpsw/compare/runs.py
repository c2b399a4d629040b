"""Read what a training run left in its work directory.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

Curve = tuple[tuple[int, float], ...]

_NOT_METRICS = ('step', 'time', 'data_time')


class MissingRunError(ValueError):
    """A directory holds no run, or no curve of the wanted metric yet."""


@dataclass(frozen=True)
class Run:
    """One training run, as far as comparing runs needs it.

    Attributes:
        name: What tables and plots call it.
        metric: The validation metric's key, such as ``coco/bbox_mAP``.
        points: (step, value) of each validation, in the order of the steps.
        higher_is_better: How two values of the metric compare.
        unit: What a step counts, 'epoch' or 'iteration'.
        time_per_iter: Seconds per training iteration, with the loading of
            the data and without validation; None where none was logged.
        memory: Peak memory of the accelerator in MB; None on a CPU.
        config_path: The resolved config that mmengine saved.
        seed: The seed that the config asks for, else the N of a directory
            that is named seed_N; None where neither says.
        max_steps: The step at which the training would end; None where the
            config counts in another unit.
        logged: All the metrics that its validations logged.
    """

    name: str
    metric: str
    points: Curve
    higher_is_better: bool = True
    unit: str = 'epoch'
    time_per_iter: float | None = None
    memory: float | None = None
    config_path: Path | None = None
    seed: int | None = None
    max_steps: int | None = None
    logged: tuple[str, ...] = ()

    @property
    def steps(self) -> list[int]:
        """The steps of its validations."""
        return [step for step, _ in self.points]

    @property
    def values(self) -> list[float]:
        """The metric's values without their steps."""
        return [value for _, value in self.points]

    @property
    def finished(self) -> bool:
        """Whether it was validated at the end of its training."""
        return self.max_steps is None or self.steps[-1] >= self.max_steps


@dataclass(frozen=True)
class Arm:
    """One way to train, as a comparison shows it: one run a seed.

    Attributes:
        name: What tables and plots call it.
        runs: Its runs, in the order of the seeds.
        notes: Sentences on what was found wanting when they were read.
    """

    name: str
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()

    @property
    def curves(self) -> list[Curve]:
        """The (step, value) points of each run."""
        return [run.points for run in self.runs]


def check_comparable(arms: Sequence[Arm]) -> None:
    """Refuse arms whose numbers would not mean the same.

    Raises:
        ValueError: If an arm has no run, or if the runs' metrics, rules or
            units differ.
    """
    for arm in arms:
        if not arm.runs:
            raise ValueError(
                f'The arm {arm.name!r} has no run, so that there is nothing '
                'to compare. Give it at least one.')
    for what, found in {
            'metrics': {run.metric for arm in arms for run in arm.runs},
            'steps': {run.unit for arm in arms for run in arm.runs},
            'rules': {
                'higher is better' if run.higher_is_better
                else 'lower is better' for arm in arms for run in arm.runs},
    }.items():
        if len(found) > 1:
            raise ValueError(
                f'The arms cannot be compared, because their {what} differ: '
                f'{sorted(found)}. Compare runs of equal {what}.')


def paired_runs(arm: Arm, baseline: Arm) -> list[tuple[Run, Run]]:
    """The runs of two arms that had the same seed, in the arm's order.

    Where a seed was used several times, the first is paired with the first.
    Runs whose seed is not known are paired with none.
    """
    others = dict(_by_seed(baseline))
    return [(run, others[key]) for key, run in _by_seed(arm) if key in others]


def _by_seed(arm: Arm) -> Iterator[tuple[tuple[int, int], Run]]:
    seen: dict[int, int] = {}
    for run in arm.runs:
        if run.seed is not None:
            seen[run.seed] = seen.get(run.seed, 0) + 1
            yield (run.seed, seen[run.seed]), run


@dataclass(frozen=True)
class _Session:
    """The lines of one timestamp directory."""

    config_path: Path
    config: Config
    train: list[dict]
    val: list[dict]


def read_run(work_dir: str | Path,
             name: str | None = None,
             metric: str | None = None,
             rule: str | None = None) -> Run:
    """Read the newest run of a mmengine work directory.

    A run that was resumed is joined from its timestamp directories; where
    two of them have the same step, the later one counts.

    Args:
        work_dir: What the training was given as its work directory.
        name: The run's name; the directory's own name by default.
        metric: A validation metric's key, or its last part (``bbox_mAP`` for
            ``coco/bbox_mAP``). By default what the run's CheckpointHook calls
            the best (``save_best``), else mIoU or coco/bbox_mAP where there
            is one, else the first one that was logged.
        rule: 'greater' or 'less', where mmengine cannot infer it from the
            metric's name.

    Raises:
        MissingRunError: If there is no run in ``work_dir``, or if it has not
            logged ``metric`` (or nothing at all) yet.
        ValueError: If several metrics fit ``metric``, or if nobody can say
            whether higher values of it are better.
    """
    work_dir = Path(work_dir)
    sessions = _joined_sessions(work_dir)
    config = sessions[-1].config
    lines = _merged_val_lines(sessions)
    logged = _logged_metrics(lines, work_dir)
    checkpoint_hook = _default_hook(config, 'checkpoint')
    metric = _choose_metric(logged, metric, checkpoint_hook, work_dir)
    unit = _unit(config)
    return Run(
        name=name or work_dir.name,
        metric=metric,
        points=_points(lines, metric),
        higher_is_better=_higher_is_better(metric, rule, checkpoint_hook),
        unit=unit,
        time_per_iter=_median_time(sessions),
        memory=_peak(sessions, 'memory'),
        config_path=sessions[-1].config_path,
        seed=_seed(config, work_dir),
        max_steps=_train_cfg(config).get(
            'max_epochs' if unit == 'epoch' else 'max_iters'),
        logged=tuple(logged))


def validated_steps(work_dir: str | Path) -> list[int]:
    """The steps at which the newest run of a directory was validated.

    Args:
        work_dir: A work directory; it may be empty or absent.

    Returns:
        The steps in ascending order, empty where nothing was validated.
    """
    try:
        sessions = _joined_sessions(Path(work_dir))
    except ValueError:
        return []
    return sorted(_merged_val_lines(sessions))


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
            f'There is no training run in {str(work_dir)!r}, because no '
            'TIMESTAMP/vis_data/scalars.json with training lines is there. '
            'Name the directory that the training was given as --work-dir.')
    return sessions


def _read_session(scalars: Path) -> _Session:
    config_path = scalars.with_name('config.py')
    # What a config imports is of no use here, and may not be installed.
    config = Config.fromfile(config_path, import_custom_modules=False)
    lines = _read_lines(scalars)
    if _is_iter_based(config) and _logs_by_epoch(config):
        lines = _with_iterations(lines, _train_cfg(config))
    return _Session(
        config_path=config_path,
        config=config,
        train=[_strip(line, 'train/') for line in lines if 'iter' in line],
        val=[_strip(line, 'val/') for line in lines if 'iter' not in line])


def _with_iterations(lines: list[dict], train_cfg: dict) -> list[dict]:
    """Validation lines with the iteration as their step.

    An iteration-based loop whose LoggerHook has its default, the epoch, calls
    every validation's step 0. A validation comes after a multiple of
    ``val_interval``, the first one at or after the training line before it.
    """
    interval = train_cfg.get('val_interval', 1000)
    last = train_cfg['max_iters']
    placed, trained, validated = [], 0, 0
    for line in lines:
        if 'iter' in line:
            trained = line['iter']
        else:
            due = math.ceil(trained / interval) * interval
            validated = min(last, max(due, validated + interval))
            line = {**line, 'step': validated}
        placed.append(line)
    return placed


def _read_lines(path: Path) -> list[dict]:
    texts = path.read_text().splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            # A run that is killed, or still writing, may leave half a line.
            if number == len(texts):
                break
            raise ValueError(
                f'Line {number} of {path} is not JSON, because {error}. '
                'Remove the line, or train again.') from error
    return lines


def _strip(line: dict, prefix: str) -> dict:
    """``LogProcessor(log_with_hierarchy=True)`` writes such prefixes."""
    return {key.removeprefix(prefix): value for key, value in line.items()}


def _train_cfg(config: Config) -> dict:
    return config.get('train_cfg') or {}


def _is_iter_based(config: Config) -> bool:
    return 'max_iters' in _train_cfg(config)


def _logs_by_epoch(config: Config) -> bool:
    return _default_hook(config, 'logger').get('log_metric_by_epoch', True)


def _unit(config: Config) -> str:
    by_epoch = _logs_by_epoch(config) and not _is_iter_based(config)
    return 'epoch' if by_epoch else 'iteration'


def _default_hook(config: Config, name: str) -> dict:
    return (config.get('default_hooks') or {}).get(name) or {}


def _seed(config: Config, work_dir: Path) -> int | None:
    seed = (config.get('randomness') or {}).get('seed')
    match = re.fullmatch(r'seed_(\d+)', work_dir.name)
    if seed is None and match:
        seed = int(match[1])
    return seed


def _merged_val_lines(sessions: list[_Session]) -> dict[int, dict]:
    """Validation lines by step.

    What a session begins with is what it was resumed to: whatever an earlier
    one has from that step on did not lead to the final weights.
    """
    merged: dict[int, dict] = {}
    for session in sessions:
        if session.val:
            first = session.val[0]['step']
            merged = {k: v for k, v in merged.items() if k < first}
        merged.update({line['step']: line for line in session.val})
    return merged


def _logged_metrics(lines: dict[int, dict], work_dir: Path) -> list[str]:
    metrics = list(
        dict.fromkeys(key for line in lines.values() for key in line
                      if key not in _NOT_METRICS))
    if not metrics and lines:
        raise MissingRunError(
            f'The run in {str(work_dir)!r} has no curve, because its '
            f'{len(lines)} validations logged no metric (mmdet logs none '
            'while a detector finds no box). Train longer.')
    if not metrics:
        raise MissingRunError(
            f'The run in {str(work_dir)!r} has no curve, because no '
            'validation metric is logged yet. Wait for its first validation, '
            'or train with a val_evaluator.')
    return metrics


def _choose_metric(choices: list[str], metric: str | None,
                   checkpoint_hook: dict, work_dir: Path) -> str:
    if metric is None:
        return primary_metric(choices, checkpoint_hook)
    matching = [c for c in choices if metric in (c, c.split('/')[-1])]
    if len(matching) != 1:
        # Where other runs logged it, this one has no curve of it yet.
        error = ValueError if matching else MissingRunError
        raise error(
            f'metric={metric!r} is not one metric of the run in '
            f'{str(work_dir)!r}, because it logged {choices}. Name one of '
            'these.')
    return matching[0]


def primary_metric(choices: list[str], checkpoint_hook: dict) -> str:
    save_best = checkpoint_hook.get('save_best')
    wanted = [save_best] if isinstance(save_best, str) else save_best or []
    # mmseg logs aAcc first, and mmdet the precision of each class where it is
    # asked for that; but these are what they rank their models by.
    for metric in [*wanted, 'mIoU', 'coco/bbox_mAP']:
        if metric in choices:
            return metric
    return choices[0]


def _higher_is_better(metric: str, rule: str | None,
                      checkpoint_hook: dict) -> bool:
    """Ask mmengine's own rule, which `save_best` follows."""
    from mmengine.hooks import CheckpointHook  # torch comes with it
    if rule not in (None, 'greater', 'less'):
        raise ValueError(f"rule={rule!r} is unknown. Use 'greater' or 'less'.")
    if rule is None and checkpoint_hook.get('save_best') in (metric, 'auto'):
        rule = checkpoint_hook.get('rule')
    keys = {
        key: checkpoint_hook.get(key)
        for key in ('greater_keys', 'less_keys')
    }
    try:
        hook = CheckpointHook(save_best=metric, rule=rule, **keys)
    except ValueError as error:
        raise ValueError(
            f'Nobody can say whether a higher {metric!r} is better, because '
            "mmengine has no rule for this name. Name one: rule='greater' or "
            "rule='less'.") from error
    return hook.rules[0] == 'greater'


def _points(lines: dict[int, dict], metric: str) -> Curve:
    """A validation without the metric (no box found, say) is no point."""
    return tuple((step, float(lines[step][metric])) for step in sorted(lines)
                 if metric in lines[step])


def _median_time(sessions: list[_Session]) -> float | None:
    """The median, without each session's warming up (its first tenth)."""
    times: list[float] = []
    for session in sessions:
        logged = [line['time'] for line in session.train if 'time' in line]
        warm_up = min(len(logged) - 1, max(1, len(logged) // 10))
        times += logged[max(0, warm_up):]
    return statistics.median(times) if times else None


def _peak(sessions: list[_Session], key: str) -> float | None:
    values = [line[key] for session in sessions for line in session.train
              if key in line]
    return max(values) if values else None

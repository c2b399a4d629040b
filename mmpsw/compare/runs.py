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
from typing import Any

from mmengine.config import Config

__all__ = ['Run', 'expected_metric', 'full_name', 'higher_is_better',
           'hook_of', 'is_by_epoch', 'logged_by', 'measured', 'parse_line',
           'primary_metric', 'read_run']

# What the zoos rank models by, by the evaluator that logs it. It is often
# not the first thing logged: mmseg begins with aAcc, and mmdet with the
# precision of each class where it is asked for that.
RANKED_BY = {
    'IoUMetric': 'mIoU',
    'CocoMetric': 'coco/bbox_mAP',
    'LVISMetric': 'lvis/bbox_AP',
    'VOCMetric': 'pascal_voc/mAP',
    'CocoPanopticMetric': 'coco_panoptic/PQ',
    'Accuracy': 'accuracy/top1',
}
# And where these are not what is measured: SOLO has no boxes, RPN no classes,
# and DRIVE's vessels are measured by mDice.
_ELSE = ('coco/segm_mAP', 'coco/AR@1000', 'mDice', 'mFscore')


@dataclass(frozen=True)
class Run:
    """One run, as its work directory tells it.

    Attributes:
        folder: The work directory.
        config: The resolved config that mmengine saved.
        log_dir: The timestamp directory that it was read from.
        training: What each line of the training log holds, in its order.
        validations: The metrics of each validation, by its step, ascending.
        time: Seconds per training iteration, with the loading of the data
            and without validation: the median; NaN where none was logged.
        memory: Peak memory of the accelerator in MB; NaN on a CPU.
    """

    folder: Path
    config: Config
    log_dir: Path
    training: list[dict]
    validations: dict[int, dict[str, float]]
    time: float
    memory: float

    @property
    def logged(self) -> list[str]:
        """All the metrics that its validations logged, after the start."""
        return list(dict.fromkeys(
            key for step, metrics in self.validations.items() if step
            for key in metrics))

    @property
    def unit(self) -> str:
        """What a step counts, 'epoch' or 'iteration'."""
        by_epoch = is_by_epoch(self.config) and _logs_epochs(self.config)
        return 'epoch' if by_epoch else 'iteration'

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


def hook_of(config: Config, name: str = 'checkpoint') -> Mapping:
    """The settings of one of a config's default hooks."""
    return (config.get('default_hooks') or {}).get(name) or {}


def is_by_epoch(config: Config) -> bool:
    """Whether a config's training loop counts epochs."""
    loop = config.get('train_cfg') or {}
    is_iter = 'max_iters' in loop or 'IterBased' in str(loop.get('type'))
    return bool(loop.get('by_epoch', not is_iter))


def primary_metric(logged: Sequence[str], checkpoint_hook: Mapping) -> str:
    """The metric that ranks models.

    Args:
        logged: The metrics of a validation; one at least.
        checkpoint_hook: The settings of the run's CheckpointHook.

    Returns:
        What ``save_best`` names, else what the zoos rank by (mIoU,
        coco/bbox_mAP, accuracy/top1, ...), else the first that is logged.
    """
    wanted = [*_save_best(checkpoint_hook), *RANKED_BY.values(), *_ELSE]
    return next((name for name in wanted if name in logged), logged[0])


def expected_metric(config: Config) -> str | None:
    """The same before anything is logged; None where the config is silent."""
    named = [name for name in _save_best(hook_of(config)) if name != 'auto']
    logged = logged_by(config)
    known = [RANKED_BY[kind] for kind, _ in _evaluators(config)
             if kind in RANKED_BY]
    if logged:
        known = [name for name in [*known, *_ELSE] if name in logged] + logged
    return next(iter([*named, *known]), None)


def logged_by(config: Config) -> list[str]:
    """The metrics that a config's evaluators will log.

    Empty where one of them is none of the three that most configs have, or
    logs a number for each class or threshold too.
    """
    names: list[str] = []
    for kind, item in _evaluators(config):
        if kind == 'CocoMetric' and not item.get('classwise'):
            kinds = _listed(item.get('metric', 'bbox'))
            items = item.get('metric_items') or (
                'mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
            recalls = [f'AR@{number}' for number in item.get(
                'proposal_nums', (100, 300, 1000))]
            sizes = ['AR_s@1000', 'AR_m@1000', 'AR_l@1000']
            found = [name for kind in kinds for name in dict(
                proposal_fast=recalls, proposal=recalls + sizes).get(
                    kind, [f'{kind}_{name}' for name in items])]
        elif kind == 'IoUMetric':
            more = dict(mIoU=['mIoU', 'mAcc'], mDice=['mDice', 'mAcc'],
                        mFscore=['mFscore', 'mPrecision', 'mRecall'])
            found = ['aAcc', *(name for key in _listed(
                item.get('iou_metrics', 'mIoU')) for name in more[key])]
        elif kind == 'Accuracy' and 'thrs' not in item:
            found = [f'top{k}' for k in _listed(item.get('topk', 1))]
        else:
            return []
        prefix = item.get('prefix') or dict(
            CocoMetric='coco', Accuracy='accuracy').get(kind)
        names += [f'{prefix}/{name}' if prefix else name for name in found]
    return names


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
    if metric in (*RANKED_BY.values(), *_ELSE):
        rule = rule or 'greater'
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
    """A logged metric by its name, or by its last part (``bbox_mAP``)."""
    found = [name for name in logged if name.split('/')[-1] == metric]
    return metric if metric in logged else next(iter(found), None)


def measured(metrics: Mapping, config: Config) -> dict[str, float]:
    """The metrics in a validation's line.

    mmdet logs none while a detector finds no box at all: COCO's mean average
    precision is 0 then.
    """
    found = {key: float(value) for key, value in metrics.items()
             if key not in ('step', 'time', 'data_time')
             and isinstance(value, Real)}
    if not found and 'CocoMetric' in dict(_evaluators(config)):
        names = logged_by(config) or [RANKED_BY['CocoMetric']]
        found = dict.fromkeys(names, 0.)
    return found


def parse_line(text: str | bytes) -> dict:
    """A line of the log; a ValueError where it is broken."""
    line = json.loads(text)
    if not isinstance(line, dict):
        raise ValueError('it is no object')
    # `LogProcessor(log_with_hierarchy=True)` writes such prefixes.
    return {re.sub('^(train|val)/', '', key): value
            for key, value in line.items()}


def read_run(work_dir: str | Path) -> Run | None:
    """Read the newest run of a mmengine work directory; None without one.

    A run that was resumed is joined from its timestamp directories; where
    two of them have the same step, the later one counts.

    Raises:
        ValueError: A line of its log, or its config, is broken.
    """
    sessions = []
    files = Path(work_dir).glob('*/vis_data/scalars.json')
    for path in sorted(files, reverse=True):
        # What a config imports is of no use here, and may not be installed.
        try:
            config = Config.fromfile(path.with_name('config.py'),
                                     import_custom_modules=False)
        except Exception as error:  # a config is a program
            raise ValueError(
                f"'{path.with_name('config.py')}' cannot be read "
                f'({type(error).__name__}: {error}); remove '
                f"'{path.parents[1]}', or train again") from error
        lines = _read_lines(path, config)
        train = [line for line in lines if 'iter' in line]
        # `Runner.val` alone writes such a file too, but it trains nothing.
        if not train:
            continue
        val = [line for line in lines if 'iter' not in line]
        sessions.insert(0, (path.parents[1], config, train, val))
        if not config.get('resume', False):
            break
    if not sessions:
        return None
    times = []
    for *_, train, _ in sessions:
        logged = [line['time'] for line in train if 'time' in line]
        # Without the warming up: the first tenth.
        times += logged[max(1, len(logged) // 10):] or logged
    training = [line for *_, train, _ in sessions for line in train]
    memory = [line['memory'] for line in training if 'memory' in line]
    log_dir, config, *_ = sessions[-1]
    return Run(Path(work_dir), config, log_dir, training,
               _join([val for *_, val in sessions], config),
               time=statistics.median(times or [math.nan]),
               memory=max(memory, default=math.nan))


def _read_lines(path: Path, config: Config) -> list[dict]:
    texts = path.read_text(encoding='utf-8', errors='replace').splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(parse_line(text))
        except ValueError as error:
            # A run that is killed, or still writing, may leave half a line.
            if number < len(texts):
                raise ValueError(f"line {number} of '{path}' is no JSON "
                                 f'({error}); remove it, or train again'
                                 ) from error
    loop = config.get('train_cfg') or {}
    if _logs_epochs(config) and 'max_iters' in loop:
        _number_validations(lines, loop)
    return lines


def _number_validations(lines: list[dict], train_cfg: Mapping) -> None:
    """Give validation lines the iteration as their step.

    An iteration-based loop whose LoggerHook has its default, the epoch, calls
    every validation's step 0. A validation comes after a multiple of
    ``val_interval``, the first one at or after the training line before it.
    """
    interval = train_cfg.get('val_interval', 1000)
    trained = validated = 0
    for line in lines:
        if 'iter' in line:
            trained = line['iter']
        else:
            due = math.ceil(trained / interval) * interval
            line['step'] = validated = min(
                train_cfg['max_iters'], max(due, validated + interval))


def _join(sessions: Sequence[list[dict]],
          config: Config) -> dict[int, dict]:
    """Metrics by step.

    A resumed session repeats some steps of the one before. From its first
    step on, the points of the earlier session are dropped, because they did
    not lead to the final weights.
    """
    joined: dict[int, dict] = {}
    for lines in sessions:
        first = lines[0]['step'] if lines else math.inf
        joined = {step: line for step, line in joined.items() if step < first}
        joined |= {line['step']: measured(line, config) for line in lines}
    return joined


def _evaluators(config: Config) -> list[tuple[str, Mapping]]:
    """The class names and settings of what validates."""
    return [(re.findall(r'\w+', str(item.get('type')))[-1], item)
            for item in _listed(config.get('val_evaluator') or [])]


def _logs_epochs(config: Config) -> bool:
    return hook_of(config, 'logger').get('log_metric_by_epoch', True)


def _save_best(checkpoint_hook: Mapping) -> list[str]:
    return _listed(checkpoint_hook.get('save_best') or [])


def _listed(value: Any) -> list:
    """A setting that may be one of something, or several."""
    return (list(value) if isinstance(value, Sequence)
            and not isinstance(value, str) else [value])

"""A grid of arms and seeds: its runs, its folder, and how far it is.

Every run is what a user would type, ``tools/train.py CONFIG --with ARM --seed
N``, in a work directory of its own::

    WORK/comparison.json        what is compared
    WORK/ARM/seed_N/            mmengine's work directory
    WORK/ARM/seed_N.log         all that the run printed

What is finished is not trained again, and what was interrupted goes on from
its newest validated checkpoint. An arm that only evaluates rides along in the
baseline's run: it has a folder, and no log.
"""
import fcntl
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mmengine.config import Config, DictAction

import mmpsw
from mmpsw import configs
from mmpsw.compare.runs import (
    expected_metric,
    higher_is_better,
    hook_of,
    is_by_epoch,
    logged_by,
    read_run,
)
from mmpsw.configs import folder_name, split_arm

__all__ = ['BASELINE', 'Cell', 'Grid', 'hold', 'record', 'resume_point',
           'shipped', 'steps_done']

SETTINGS = 'comparison.json'
BASELINE = 'baseline'


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f'{self.arm}, seed {self.seed}'


@dataclass(frozen=True)
class Grid:
    """What is compared, and where the results go."""

    config: str  # as tools/train.py takes it
    # By its name, what an arm adds to the config: a fragment's name or path,
    # with settings or without, or several joined by +.
    arms: dict[str, str]
    seeds: tuple[int, ...]
    work_dir: Path
    options: tuple[str, ...] = ()  # key=value, for all the runs
    flags: tuple[str, ...] = ()  # other options of tools/train.py
    processes: int = 1  # of each run
    metric: str | None = None  # or its last part
    rule: str | None = None  # 'greater' or 'less'
    # Arms that only evaluate. What the baseline is, no other arm's name says.
    passengers: tuple[str, ...] = ()

    @property
    def cells(self) -> list[Cell]:
        """All runs, a seed of every arm before the next seed."""
        return [Cell(arm, seed) for seed in self.seeds for arm in self.arms]

    @property
    def first(self) -> str:
        """The arm that the others are compared with."""
        return BASELINE if BASELINE in self.arms else next(iter(self.arms))

    def run_dir(self, cell: Cell) -> Path:
        """The work directory of a run."""
        return (self.work_dir / folder_name(cell.arm)
                / f'seed_{cell.seed}')

    def log(self, cell: Cell) -> Path:
        """The file that takes what a run of its own prints."""
        return self.run_dir(cell).with_suffix('.log')

    def host(self, cell: Cell) -> Cell | None:
        """The run in which this one rides along; None for one of its own.

        One that has a run of its own goes on with that, and one that the
        baseline's run has left behind needs one.
        """
        host = Cell(BASELINE, cell.seed)
        if (cell.arm not in self.passengers or BASELINE not in self.arms
                or self.log(cell).exists()):
            return None
        lag, own = (steps_done(self.run_dir(host)),
                    steps_done(self.run_dir(cell)))
        # It is validated after its host: a kill may have come in between.
        begun = self.run_dir(cell).exists()
        return host if lag - own <= begun * self.interval(BASELINE) else None

    def guests(self, cell: Cell) -> list[Cell]:
        """What rides along in a run."""
        others = (Cell(arm, cell.seed) for arm in self.passengers)
        return [other for other in others if self.host(other) == cell]

    def done(self, cell: Cell) -> int:
        """How far a run is, with what rides along, validation included."""
        return min(steps_done(self.run_dir(one))
                   for one in (cell, *self.guests(cell)))

    def arguments(self, cell: Cell) -> list[str]:
        """What tools/train.py is given to train a run, or go on with it."""
        hook = 'default_hooks.checkpoint'
        begin = []
        if self.run_dir(cell).exists():
            checkpoint = resume_point(self.run_dir(cell), self.done(cell))
            begin = (['--resume', str(checkpoint)] if checkpoint
                     else ['--overwrite'])
        return [
            self.config, '--with', *split_arm(self.arms[cell.arm]),
            '--seed', str(cell.seed), '--work-dir', str(self.run_dir(cell)),
            *begin, *self.flags,
            *(word for guest in self.guests(cell) for word in (
                '--ride-along', self.arms[guest.arm],
                str(self.run_dir(guest)))),
            '--cfg-options',
            f'{hook}.interval={self.interval(cell.arm)}',
            f'{hook}.by_epoch={self.by_epoch(cell.arm)}',
            # The newest may have been saved just before its validation.
            f'{hook}.max_keep_ckpts=2',
            f'{hook}.save_best=None',
            # Workers that persist have random states that nobody can save.
            'train_dataloader.persistent_workers=False',
            *self._hook_options(cell.arm), *self.options
        ]

    def command(self, cell: Cell) -> list[str]:
        """The command that does so, in as many processes as a run has."""
        several = self.processes > 1
        launch = ['-m', 'torch.distributed.run', '--standalone',
                  '--nproc-per-node', str(self.processes)]
        return ['python', *(launch if several else []),
                shipped('tools/train.py'), *self.arguments(cell),
                *(['--launcher', 'pytorch'] if several else [])]

    def _hook_options(self, arm: str) -> list[str]:
        """Checkpoints are saved, logs count what the loop counts, and
        training is in them.

        mmseg's schedules log iterations, also where a config that inherits
        them counts epochs.
        """
        by_epoch, steps = self.by_epoch(arm), self.max_steps(arm)
        options = [f'log_processor.by_epoch={by_epoch}']
        hook = hook_of(self.load(arm))
        # Where an interruption looks for them, and with what it needs.
        options += [f'default_hooks.checkpoint.{key}={value}'
                    for key, value in dict(
                        out_dir=None, filename_tmpl=None, save_optimizer=True,
                        save_param_scheduler=True, save_begin=0).items()
                    if hook.get(key, value) != value]
        if 'type' not in hook:  # mmengine's own default
            options.append('default_hooks.checkpoint.type=CheckpointHook')
        logger = hook_of(self.load(arm), 'logger')
        if 'type' in logger:
            key = 'default_hooks.logger'
            options.append(f'{key}.log_metric_by_epoch={by_epoch}')
            if not by_epoch and logger.get('interval', 10) > steps:
                options.append(f'{key}.interval={steps}')
        return options

    def load(self, arm: str | None = None) -> Config:
        """The config with the options, and with what an arm adds."""
        return _load(self.config, self.options, self.arms.get(arm),
                     '--amp' in self.flags)

    def by_epoch(self, arm: str | None = None) -> bool:
        """Whether the steps of an arm are epochs, and not iterations."""
        return is_by_epoch(self.load(arm))

    def max_steps(self, arm: str | None = None) -> int:
        """How long an arm trains, in epochs or iterations."""
        loop = self.load(arm).get('train_cfg') or {}
        steps = loop.get('max_epochs', loop.get('max_iters'))
        if steps is None:
            raise ValueError(
                f"config '{self.config}' does not say how long to train, as "
                'its train_cfg has no max_epochs and no max_iters; give one '
                'that trains')
        return steps

    def interval(self, arm: str | None = None) -> int:
        """How many steps lie between two validations."""
        return self.load(arm).train_cfg.get(
            'val_interval', 1 if self.by_epoch(arm) else 1000)

    def with_metric(self) -> 'Grid':
        """The same, with a metric and a rule, which the config may name.

        Raises:
            ValueError: It is not known by what, or how, to compare.
        """
        cfg = self.load()
        if cfg.get('val_evaluator') is None:
            raise ValueError(f"config '{self.config}' has no val_evaluator, "
                             'so that there is nothing to compare; give one '
                             'that validates')
        if cfg.get('visualizer') and 'LocalVisBackend' not in str(
                cfg.visualizer.get('vis_backends')):
            raise ValueError(
                f"config '{self.config}' writes no log that can be compared, "
                "because its visualizer has no LocalVisBackend; add dict(type="
                "'LocalVisBackend') to visualizer.vis_backends")
        metric = self.metric or expected_metric(cfg)
        if metric is None:
            raise ValueError(
                f"it is not known by which metric to compare, because config "
                f"'{self.config}' has no save_best and its val_evaluator is "
                'none of the zoos\'; give --metric, and --rule greater or '
                '--rule less where mmengine has no rule for its name')
        names = logged_by(cfg)
        if self.metric and names and not any(
                name == metric or name.endswith(f'/{metric}')
                for name in names):
            raise ValueError(f"--metric '{metric}' is not what the config's "
                             f'val_evaluator logs; give one of '
                             f'{", ".join(names)}')
        higher = higher_is_better(metric, self.rule, hook_of(cfg))
        return replace(self, metric=metric,
                       rule='greater' if higher else 'less')


@contextmanager
def hold(work_dir: Path) -> Iterator[int]:
    """Let no other comparison write to a folder, which is made.

    Gives the descriptor that a run must inherit, so that one which outlives
    a killed comparison still holds the folder.

    Raises:
        ValueError: Another comparison, or such a run, is at work there.
    """
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(work_dir, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"--work-dir '{work_dir}' cannot be used, because "
                         f"the system says '{error.strerror}'; give another "
                         'folder') from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise ValueError(
            f"'{work_dir}' is in use: a comparison is being trained there, or "
            'a run that outlived a killed one; wait for it, end it, or give '
            'another --work-dir') from error
    except OSError:  # a file system without locks
        pass
    try:
        yield lock
    finally:
        os.close(lock)


def record(grid: Grid, remarks: Sequence[str] = ()) -> None:
    """Write what is compared into a grid's folder.

    A folder that holds the same experiment keeps the arms and seeds that it
    has, besides those that are asked for. One in which nothing was validated
    yet may become another.

    Args:
        grid: What is to be compared.
        remarks: How it differs from what the model zoo published.

    Raises:
        ValueError: The folder holds something else.
    """
    from mmpsw.checkpoints import whole_file  # torch comes with it
    plan = dict(
        config=grid.config,
        config_sha256=hashlib.sha256(
            grid.load().pretty_text.encode()).hexdigest(),
        cfg_options=dict(pair.split('=', 1) for pair in grid.options),
        flags=[flag for flag in grid.flags if flag.startswith('--')
               and flag != '--weights'],
        processes=grid.processes, arms=grid.arms,
        settings={arm: '\n'.join(
            configs.load_fragment(part).pretty_text
            for part in split_arm(text)) for arm, text in grid.arms.items()},
        seeds=list(grid.seeds), metric=grid.metric, rule=grid.rule,
        passengers=[arm for arm in grid.arms if any(
            grid.host(Cell(arm, seed)) for seed in grid.seeds)],
        published=list(remarks))
    with whole_file(grid.work_dir / SETTINGS) as path:
        path.write_text(json.dumps(joined(grid.work_dir, plan), indent=1)
                        + '\n')


def joined(folder: Path, plan: dict) -> dict:
    """A plan with the arms and seeds that a folder's plan has besides.

    Raises:
        ValueError: The folder holds something else.
    """
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return plan
    try:
        saved = json.loads((folder / SETTINGS).read_text(encoding='utf-8'))
        both = {*saved['settings']} & {*plan['settings']}
        others = [*(key for key in ('cfg_options', 'flags', 'processes')
                    if saved[key] != plan[key]),
                  *(f'the arm {arm}' for arm in sorted(both)
                    if saved['settings'][arm] != plan['settings'][arm])]
        if saved['config_sha256'] != plan['config_sha256']:
            others = others or ['config']
        known = {key: {**saved[key], **plan[key]}
                 for key in ('arms', 'settings')}
        lists = {key: list(dict.fromkeys([*saved[key], *plan[key]]))
                 for key in ('seeds', 'passengers')}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--work-dir '{folder}' holds something else than a comparison of "
            f'this version; give another folder, or remove it') from error
    if others and not any(map(steps_done, folder.glob('*/seed_*/'))):
        return plan  # all of it would be trained anew
    if others:
        raise ValueError(
            f"--work-dir '{folder}' holds another comparison, in which "
            f'{" and ".join(others)} differ; give another folder')
    return {**plan, **known, **lists, 'seeds': sorted(lists['seeds'])}


def steps_done(run_dir: Path) -> int:
    """How far a run is, validation included."""
    run = read_run(run_dir)
    return max(run.validations, default=0) if run else 0


def resume_point(run_dir: Path, done: int) -> Path | None:
    """The newest checkpoint up to the step that was validated, or None.

    Not simply the last checkpoint: it may have been written just before a
    validation that was interrupted, whose point would be missing.
    """
    steps = {path: int(path.stem.rpartition('_')[2])
             for path in run_dir.glob('*_*.pth')
             if re.fullmatch(r'(epoch|iter)_\d+', path.stem)}
    usable = [path for path in steps if steps[path] <= done]
    return max(usable, key=steps.get, default=None)


def shipped(name: str) -> str:
    """A file of the checkout or the installed package, as a user types it."""
    # In a checkout, .mim holds links.
    path = (Path(mmpsw.__file__).parent / '.mim' / name).resolve()
    relative = os.path.relpath(path)
    return str(path) if relative.startswith('..') else relative


@functools.cache
def _load(config: str, options: tuple[str, ...], arm: str | None,
          amp: bool) -> Config:
    cfg = configs.load_config(config)
    pairs = (pair.split('=', 1) for pair in options)
    values = {key: DictAction._parse_iterable(text) for key, text in pairs}
    if arm is None:
        configs.merge(cfg, values, '--cfg-options')
    else:
        fragments = [configs.load_fragment(part) for part in split_arm(arm)]
        configs.apply_fragments(cfg, fragments, amp, values)
    return cfg

"""A grid of arms and seeds: its runs, its folder, and how far it is.

Every run is what a user would type, ``tools/train.py CONFIG --with ARM --seed
N``, in a work directory of its own::

    WORK/comparison.json        what is compared
    WORK/ARM/seed_N/            mmengine's work directory
    WORK/ARM/seed_N.log         all that the run printed
    WORK/ARM/seed_N.lock        held by the run's process

What is finished is not trained again, and what was interrupted goes on from
its newest validated checkpoint.
"""
import functools
import hashlib
import json
import os
import re
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
    read_run,
)

__all__ = ['Cell', 'Grid', 'arm_name', 'claim', 'parts', 'resume_point',
           'shipped', 'steps_done']

SETTINGS = 'comparison.json'


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
    # By the arm's name, what it adds to the config: a fragment's name or
    # path, or several joined by +.
    arms: dict[str, str]
    seeds: tuple[int, ...]
    work_dir: Path
    options: tuple[str, ...] = ()  # key=value, for all the runs
    metric: str | None = None  # or its last part
    rule: str | None = None  # 'greater' or 'less'
    # Arms that are evaluated in the baseline's runs, which they leave alone.
    passengers: tuple[str, ...] = ()

    @property
    def cells(self) -> list[Cell]:
        """All runs, a seed of every arm before the next seed."""
        return [Cell(arm, seed) for seed in self.seeds for arm in self.arms]

    def run_dir(self, cell: Cell) -> Path:
        """The work directory of a run."""
        return self.work_dir / cell.arm / f'seed_{cell.seed}'

    def log(self, cell: Cell) -> Path:
        """The file that takes what a run prints."""
        return self.run_dir(cell).with_suffix('.log')

    def host(self, cell: Cell) -> Cell | None:
        """The run in which this one rides along; None for one of its own."""
        if cell.arm in self.passengers:
            return Cell('baseline', cell.seed)
        return None

    def _ride_along(self, cell: Cell) -> list[str]:
        """A run that was begun without a passenger goes on without it."""
        guests = [Cell(arm, cell.seed) for arm in self.passengers
                  if self.host(Cell(arm, cell.seed)) == cell]
        if self.run_dir(cell).exists():
            guests = [g for g in guests if self.run_dir(g).exists()]
        folders = [f'{self.arms[g.arm]}={self.run_dir(g)}' for g in guests]
        return ['--ride-along', *folders] if folders else []

    def command(self, cell: Cell) -> list[str]:
        """The command that trains a run, or goes on with it."""
        hook = 'default_hooks.checkpoint'
        begin = []
        if self.run_dir(cell).exists():
            checkpoint = resume_point(self.run_dir(cell))
            begin = (['--resume', str(checkpoint)] if checkpoint
                     else ['--overwrite'])
        return [
            'python', shipped('tools/train.py'), self.config,
            '--with', *parts(self.arms[cell.arm]), '--seed', str(cell.seed),
            '--work-dir', str(self.run_dir(cell)), *begin,
            *self._ride_along(cell),
            '--cfg-options',
            f'{hook}.interval={self.interval()}',
            f'{hook}.by_epoch={self.by_epoch()}',
            # The newest may have been saved just before its validation.
            f'{hook}.max_keep_ckpts=2',
            f'{hook}.save_best=None',
            # Workers that persist have random states that nobody can save.
            'train_dataloader.persistent_workers=False', *self._log_options(),
            *self.options
        ]

    def _log_options(self) -> list[str]:
        """Logs count what the loop counts, and training is in them.

        mmseg's schedules log iterations, also where a config that inherits
        them counts epochs.
        """
        options = [f'log_processor.by_epoch={self.by_epoch()}']
        logger = hook_of(self.load(), 'logger')
        if 'type' in logger:
            key = 'default_hooks.logger'
            options.append(f'{key}.log_metric_by_epoch={self.by_epoch()}')
            if (not self.by_epoch()
                    and logger.get('interval', 10) > self.max_steps()):
                options.append(f'{key}.interval={self.max_steps()}')
        return options

    def load(self) -> Config:
        """The config, with the options."""
        return _load(self.config, self.options)

    def by_epoch(self) -> bool:
        """Whether its steps are epochs, and not iterations."""
        return is_by_epoch(self.load())

    def max_steps(self) -> int:
        """How long each run trains, in epochs or iterations."""
        cfg = self.load().train_cfg
        return cfg.max_epochs if 'max_epochs' in cfg else cfg.max_iters

    def interval(self) -> int:
        """How many steps lie between two validations."""
        return self.load().train_cfg.get('val_interval',
                                         1 if self.by_epoch() else 1000)

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
        higher = higher_is_better(metric, self.rule, hook_of(cfg))
        return replace(self, metric=metric,
                       rule='greater' if higher else 'less')


def parts(arm: str) -> list[str]:
    """The fragments of an arm: ``pwalks+ema``, or a path."""
    return [arm] if Path(arm).is_file() else arm.split('+')


def arm_name(arm: str) -> str:
    """What an arm's folder is called."""
    return '+'.join(Path(part).stem.lower() for part in parts(arm))


def claim(grid: Grid, fresh: bool = False) -> Grid:
    """Take a grid's folder, or a numbered one beside it.

    A folder that holds the same experiment is used, with the arms and seeds
    that it has and those that are asked for.

    Args:
        grid: What is to be compared.
        fresh: Whether to pass by an equal experiment.
    """
    from mmpsw.checkpoints import whole_file  # torch comes with it
    fragments = {name: [configs.load_fragment(part).pretty_text
                        for part in parts(arm)]
                 for name, arm in grid.arms.items()}
    wanted = dict(
        config=grid.config,
        config_sha256=_sha256(grid.load().pretty_text),
        cfg_options=dict(pair.split('=', 1) for pair in grid.options),
        arms=grid.arms,
        arms_sha256={name: _sha256(*texts)
                     for name, texts in fragments.items()},
        seeds=list(grid.seeds), metric=grid.metric, rule=grid.rule,
        passengers=list(grid.passengers))
    number, folder = 1, grid.work_dir
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        joined = None if fresh else _joined(folder, wanted)
        if joined:
            wanted = joined
            break
        number += 1
        folder = Path(f'{grid.work_dir}_{number}')
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / SETTINGS) as path:
        path.write_text(json.dumps(wanted, indent=1) + '\n')
    return replace(grid, work_dir=folder)


def steps_done(run_dir: Path) -> int:
    """How far a run is, validation included."""
    run = read_run(run_dir)
    return max(run.validations, default=0) if run else 0


def resume_point(run_dir: Path) -> Path | None:
    """The newest checkpoint whose own validation is logged, or None.

    Not simply the last checkpoint: it may have been written just before a
    validation that was interrupted, whose point would be missing.
    """
    done = steps_done(run_dir)
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


def _joined(folder: Path, wanted: dict) -> dict | None:
    """A folder's settings and ours together; None where they disagree."""
    try:
        saved = json.loads((folder / SETTINGS).read_text())
        hashes = {**wanted['arms_sha256'], **saved['arms_sha256']}
        if (saved['config_sha256'] != wanted['config_sha256']
                or not wanted['arms_sha256'].items() <= hashes.items()):
            return None
        return {**wanted, 'arms': {**saved['arms'], **wanted['arms']},
                'arms_sha256': hashes,
                'passengers': sorted({*saved.get('passengers', []),
                                      *wanted['passengers']}),
                'seeds': sorted({*saved['seeds'], *wanted['seeds']})}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@functools.cache
def _load(config: str, options: tuple[str, ...]) -> Config:
    cfg = configs.load_config(config)
    pairs = (pair.split('=', 1) for pair in options)
    try:
        cfg.merge_from_dict({key: DictAction._parse_iterable(text)
                             for key, text in pairs})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError('--cfg-options does not fit the config: '
                         f'{error}') from error
    return cfg


def _sha256(*texts: str) -> str:
    return hashlib.sha256('\n'.join(texts).encode()).hexdigest()

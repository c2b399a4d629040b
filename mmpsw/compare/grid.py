"""Trains arms and seeds side by side, and survives being interrupted.

Every run is what a user would type, ``tools/train.py CONFIG --arm ARM --seed
N``, in a process and a work directory of its own::

    WORK/comparison.json        what is compared
    WORK/ARM/seed_N/            mmengine's work directory
    WORK/ARM/seed_N.log         all that the training printed
    WORK/ARM/seed_N.lock        held by the training's process

What is finished is not trained again. A run that was interrupted goes on from
its newest validated checkpoint; one whose process has outlived a killed
comparison is waited for.
"""
import fcntl
import functools
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock

from mmengine.config import Config, DictAction

from mmpsw import configs

__all__ = [
    'Cell', 'Failure', 'Grid', 'TrainingError', 'claim', 'missing', 'train'
]

SETTINGS = 'comparison.json'
CHECKOUT = Path(__file__).resolve().parents[2]
# mmengine's log: "Epoch(train)  [1][50/80]  lr: ..." and "Iter(val) [16/16]
# mIoU: 70.1 ..."
_LOG_LINE = re.compile(r'(Epoch|Iter)\((train|val)\)\s*(?:\[\s*(\d+)\])?'
                       r'\[\s*(\d+)/(\d+)\](.*)')
_PAIR = re.compile(r'(\S+): (-?[\d.]+(?:e[+-]?\d+)?|nan)\b')
# What of an epoch's time is training; the rest is its validation.
_TRAIN_SHARE = 0.9
_TAIL_LINES = 15
_POLL = 0.5
# mmengine reads one config at a time: it imports them under passing names.
_reading = Lock()


class TrainingError(Exception):
    """Trainings did not end well."""


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f'{self.arm}, seed {self.seed}'


@dataclass(frozen=True)
class Failure:
    """A run that ended with an error.

    Attributes:
        cell: Which one.
        status: Its exit status.
        log: The file with all that it printed.
        tail: The last lines of that.
    """

    cell: Cell
    status: int
    log: Path
    tail: str


@dataclass(frozen=True)
class Grid:
    """What is compared, and where the results go.

    Attributes:
        config: The config, as ``tools/train.py`` takes it.
        arms: Each arm's fragment, as ``--arm`` takes it, by the arm's name.
        seeds: The random seeds of each arm.
        work_dir: The folder of all results.
        options: ``key=value`` for ``--cfg-options`` of all the runs.
    """

    config: str
    arms: dict[str, str]
    seeds: tuple[int, ...]
    work_dir: Path
    options: tuple[str, ...] = ()

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

    def command(self, cell: Cell) -> list[str]:
        """The command that trains a run, or goes on with it."""
        return [
            'python', shown(CHECKOUT / 'tools/train.py'), self.config,
            '--arm', self.arms[cell.arm], '--seed', str(cell.seed),
            '--work-dir', str(self.run_dir(cell)), *self._resume(cell),
            '--cfg-options', *self.checkpoints(), *self.options
        ]

    def checkpoints(self) -> list[str]:
        """Settings that let an interrupted run go on where it was."""
        cfg = self.load()
        hook = 'default_hooks.checkpoint'
        return [
            f'{hook}.interval={cfg.train_cfg.get("val_interval", 1)}',
            f'{hook}.by_epoch={is_by_epoch(cfg)}',
            # The newest may have been saved just before its validation.
            f'{hook}.max_keep_ckpts=2',
            f'{hook}.save_best=None',
            # Workers that persist have random states that nobody can save.
            'train_dataloader.persistent_workers=False'
        ]

    def load(self) -> Config:
        """The config, with the options."""
        return _load(self.config, self.options)

    def max_steps(self) -> int:
        """How long each run trains, in epochs or iterations."""
        cfg = self.load().train_cfg
        return cfg.max_epochs if 'max_epochs' in cfg else cfg.max_iters

    def settings(self) -> dict:
        """What two grids must share to be the same experiment."""
        config = self.load().pretty_text
        return dict(
            config=self.config,
            config_sha256=_sha256(config),
            cfg_options=dict(_split(pair) for pair in self.options),
            arms={
                name: _sha256(configs.arm_fragment(fragment).pretty_text)
                for name, fragment in self.arms.items()
            },
            seeds=list(self.seeds))

    def _resume(self, cell: Cell) -> list[str]:
        folder = self.run_dir(cell)
        if not folder.exists():
            return []
        checkpoint = resume_point(folder)
        return (['--resume', str(checkpoint)] if checkpoint else
                ['--overwrite'])


def claim(grid: Grid, fresh: bool = False) -> Grid:
    """Takes a grid's folder, or a numbered one beside it.

    A folder that holds the same experiment is used, with the arms and seeds
    that it has and those that are asked for.

    Args:
        grid: What is to be compared.
        fresh: Whether to pass by an equal experiment.

    Returns:
        Grid: With the folder that was taken.
    """
    number = 1
    while True:
        base = grid.work_dir
        folder = base if number == 1 else Path(f'{base}_{number}')
        if not folder.exists() or _is_empty(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _write_settings(folder, grid.settings())
            return replace(grid, work_dir=folder)
        if not fresh and _joins(folder, grid.settings()):
            return replace(grid, work_dir=folder)
        number += 1


def _joins(folder: Path, wanted: dict) -> bool:
    """Adds to a folder's experiment, where it is the same one."""
    try:
        saved = json.loads((folder / SETTINGS).read_text())
        arms = {**wanted['arms'], **saved['arms']}
        same = (saved['config_sha256'] == wanted['config_sha256']
                and saved['cfg_options'] == wanted['cfg_options']
                and all(arms[k] == v for k, v in wanted['arms'].items()))
        # In the order in which they came.
        arms = {**saved['arms'], **wanted['arms']}
        seeds = sorted({*saved['seeds'], *wanted['seeds']})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if same and (arms != saved['arms'] or seeds != saved['seeds']):
        _write_settings(folder, {**saved, 'arms': arms, 'seeds': seeds})
    return same


def _write_settings(folder: Path, settings: dict) -> None:
    new = folder / f'.{SETTINGS}'
    new.write_text(json.dumps(settings, indent=1) + '\n')
    new.replace(folder / SETTINGS)


def missing(grid: Grid) -> list[Cell]:
    """The runs that are not finished."""
    return [cell for cell in grid.cells
            if steps_done(grid.run_dir(cell)) < grid.max_steps()]


def steps_done(run_dir: Path) -> int:
    """How far a run is, validation included."""
    # Late, because it imports torch, which takes seconds that a wrong option
    # should not cost.
    from mmpsw.compare.runs import validated_steps
    with _reading:
        return max(validated_steps(run_dir), default=0)


def resume_point(run_dir: Path) -> Path | None:
    """The newest checkpoint whose own validation is logged, or None.

    Not simply the last checkpoint: it may have been written just before a
    validation that was interrupted, whose point would be missing.
    """
    done = steps_done(run_dir)
    found = {
        int(match[1]): path
        for path in run_dir.glob('*.pth')
        if (match := re.fullmatch(r'(?:epoch|iter)_(\d+)', path.stem))
    }
    usable = [step for step in found if step <= done]
    return found[max(usable)] if usable else None


def is_by_epoch(cfg: Config) -> bool:
    """Whether a config's training loop counts epochs."""
    kind = str(cfg.train_cfg.get('type', ''))
    return bool(cfg.train_cfg.get('by_epoch', not kind.startswith('Iter')))


def train(grid: Grid,
          bar: 'Reporter',
          jobs: int = 1,
          gpus: Sequence[str] = ()) -> list[Failure]:
    """Trains what is not finished; a failed run does not stop the others.

    Args:
        grid: What is to be trained.
        bar: Told of all that happens.
        jobs: How many runs are trained at once.
        gpus: The devices, of which each run gets one; empty for CPU runs,
            which share the cores.

    Returns:
        list[Failure]: The runs that ended with an error.
    """
    todo = missing(grid)
    for cell in grid.cells:
        if cell not in todo:
            bar.finished(cell)
    slots: SimpleQueue = SimpleQueue()
    for index in range(jobs):
        slots.put(_environment(index, jobs, gpus))
    stop = Event()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [
            pool.submit(_in_slot, slots, stop, grid, cell, bar)
            for cell in todo
        ]
        try:
            done = [future.result() for future in futures]
        except BaseException:
            # Nobody would see what an orphan does.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [failure for failure in done if failure is not None]


def _environment(index: int, jobs: int, gpus: Sequence[str]) -> dict:
    env = dict(os.environ)
    if gpus:
        env['CUDA_VISIBLE_DEVICES'] = gpus[index % len(gpus)]
    elif jobs > 1:
        cores = len(os.sched_getaffinity(0))
        env.setdefault('OMP_NUM_THREADS', str(max(1, cores // jobs)))
    return env


def _in_slot(slots: SimpleQueue, stop: Event, grid: Grid, cell: Cell,
             bar: 'Reporter') -> Failure | None:
    env = slots.get()
    try:
        return None if stop.is_set() else train_cell(grid, cell, bar, env,
                                                     stop)
    finally:
        slots.put(env)


def train_cell(grid: Grid, cell: Cell, bar: 'Reporter', env: dict,
               stop: Event) -> Failure | None:
    """Trains one run to its end, or waits for the process that does.

    Returns:
        Failure or None: None where it ended well.
    """
    log = grid.log(cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    with _lock(log.with_suffix('.lock'), stop, lambda: bar.say(
            f'\n{cell}: its training from before is still running, and is '
            'waited for')) as lock:
        done = steps_done(grid.run_dir(cell))
        if stop.is_set():
            return None
        if done >= grid.max_steps():
            bar.finished(cell)
            return None
        command = grid.command(cell)
        bar.started(cell, command, log, done)
        follow = _Follower(grid, cell, done, bar)
        with open(log, 'ab') as file:
            start = file.tell()
            # To a file, not a pipe: the training outlives a killed
            # comparison, and its log is whole.
            process = subprocess.Popen([sys.executable, *command[1:]],
                                       stdin=subprocess.DEVNULL, stdout=file,
                                       stderr=subprocess.STDOUT, env=env,
                                       pass_fds=[lock])
        status = _wait(process, log, start, follow, stop)
    if stop.is_set():
        return None
    if status:
        lines = log.read_text(errors='replace').splitlines()[-_TAIL_LINES:]
        bar.failed(cell)
        return Failure(cell, status, log, '\n'.join(lines))
    bar.finished(cell)
    return None


def _wait(process: subprocess.Popen, log: Path, start: int,
          follow: Callable[[str], None], stop: Event) -> int:
    """Follows a log until the process ends; stops it when told so."""
    with open(log, encoding='utf-8', errors='replace') as file:
        file.seek(start)
        rest = ''
        while True:
            status = process.poll()
            rest += file.read()
            *lines, rest = rest.split('\n')
            for line in lines:
                follow(line)
            if status is not None:
                return status
            if stop.is_set():
                process.terminate()
            time.sleep(_POLL)


@contextmanager
def _lock(path: Path, stop: Event, waiting: Callable[[], None]):
    """A lock that the training's process inherits, and holds on its own."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    told = False
    try:
        while not stop.is_set():
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    waiting()
                told = True
                time.sleep(_POLL)
        yield descriptor
    finally:
        os.close(descriptor)


class _Follower:
    """Turns a training's log lines into progress."""

    def __init__(self, grid: Grid, cell: Cell, done: int, bar: 'Reporter'):
        cfg = grid.load()
        self.cell = cell
        self.bar = bar
        self.hook = cfg.get('default_hooks', {}).get('checkpoint', {})
        self.interval = cfg.train_cfg.get('val_interval', 1)
        self.total = grid.max_steps()
        self.validated = done
        # Iterations of an iteration-based loop are steps themselves.
        self.by_epoch = is_by_epoch(cfg)

    def __call__(self, line: str) -> None:
        match = _LOG_LINE.search(line)
        if match is None:
            return
        _, phase, epoch, step, steps, rest = match.groups()
        if phase == 'train':
            done = (int(epoch) - 1 + int(step) / int(steps) * _TRAIN_SHARE
                    if self.by_epoch else int(step))
            self.bar.progress(self.cell, done)
        elif step == steps:
            self.validated = min(
                int(epoch) if epoch else self.validated + self.interval,
                self.total)
            self.bar.progress(self.cell, self.validated)
            self.bar.value(self.cell, self.validated, *self._metric(rest))

    def _metric(self, rest: str) -> tuple[str, str]:
        from mmpsw.compare.runs import primary_metric
        pairs = {key: value for key, value in _PAIR.findall(rest)
                 if key not in ('data_time', 'time')}
        if not pairs:
            return '', 'nothing was measured'
        name = primary_metric(list(pairs), self.hook)
        return name, pairs[name]


class Reporter:
    """One bar over all runs; plain lines where there is no terminal."""

    def __init__(self, grid: Grid):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
        )
        self.grid = grid
        self.steps = grid.max_steps()
        self.unit = 'epoch' if is_by_epoch(grid.load()) else 'iteration'
        self.done = {cell: 0.0 for cell in grid.cells}
        self.before = 0.0
        self.begun = time.monotonic()
        self.mutex = Lock()
        self.console = Console(highlight=False, markup=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn('{task.fields[left]}'),
            console=self.console,
            disable=not self.console.is_terminal)
        self.task = self.bar.add_task(
            f'{len(self.done)} runs', total=self.steps * len(self.done),
            left='')

    def __enter__(self) -> 'Reporter':
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Prints a line, above the bar."""
        with self.mutex:
            self.bar.console.print(text)
            self.console.file.flush()

    def started(self, cell: Cell, command: Sequence[str], log: Path,
                done: int) -> None:
        """A run begins, or goes on after ``done`` steps."""
        self._skip(cell, done)
        number = list(self.done).index(cell) + 1
        self.say(f'\n[{number}/{len(self.done)}] {cell}\n'
                 f'$ {shlex.join(command)}\n  its output: {log}')

    def finished(self, cell: Cell) -> None:
        """A run is at its end, or was before."""
        if not self.done[cell]:
            self.say(f'\n{cell}: finished already, its results in '
                     f'{self.grid.run_dir(cell)}/ are used')
            self._skip(cell, self.steps)
        self.progress(cell, self.steps)

    def failed(self, cell: Cell) -> None:
        """A run ended with an error: nothing is left to do for it."""
        self._skip(cell, self.steps - self.done[cell])
        self.say(f'{cell}: ended with an error')

    def progress(self, cell: Cell, done: float) -> None:
        """How many steps a run has behind it."""
        self.done[cell] = max(done, self.done[cell])
        self.bar.update(self.task, completed=sum(self.done.values()),
                        left=self._left())

    def value(self, cell: Cell, step: int, metric: str, value: str) -> None:
        """A validation was logged."""
        who = f'{cell}: ' if len(self.done) > 1 else ''
        self.say(f'  {who}{self.unit} {step}/{self.steps}  {metric} {value}'
                 f'  {self._left()}')

    def _skip(self, cell: Cell, steps: float) -> None:
        """Steps that cost no time now."""
        self.before += steps
        self.done[cell] += steps
        self.bar.update(self.task, completed=sum(self.done.values()))

    def _left(self) -> str:
        done = sum(self.done.values())
        if done <= self.before:
            return ''
        elapsed = time.monotonic() - self.begun
        total = self.steps * len(self.done)
        seconds = elapsed / (done - self.before) * (total - done)
        return f'({duration(seconds)} left)'


def duration(seconds: float) -> str:
    """Seconds, as a person says them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f'{hours} h {minutes:02d} min'
    return f'{minutes} min {seconds:02d} s' if minutes else f'{seconds} s'


def explain(failures: Sequence[Failure]) -> str:
    """Names the runs that failed, with the ends of their logs."""
    parts = []
    for failure in failures:
        tail = ''.join(f'    {line}\n' for line in failure.tail.splitlines())
        parts.append(f'{failure.cell} ended with exit status '
                     f'{failure.status}; the last lines of {failure.log}:\n'
                     f'{tail}')
    names = '; '.join(str(failure.cell) for failure in failures)
    return (''.join(parts) +
            f'These trainings failed: {names}. Mend what the lines above name '
            'and give the same command again: what is finished is kept.')


@functools.cache
def _load(config: str, options: tuple[str, ...]) -> Config:
    with _reading:
        cfg = configs.load_config(config)
    cfg.merge_from_dict({
        key: DictAction._parse_iterable(text)
        for key, text in map(_split, options)
    })
    return cfg


def _split(pair: str) -> tuple[str, str]:
    key, _, text = pair.partition('=')
    return key, text


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def shown(path: Path) -> str:
    """A path as a user in this folder would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith('..') else relative

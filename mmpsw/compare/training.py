"""Trains the runs of a grid side by side, and shows how far they are.

A run that fails does not stop the others. One whose process has outlived a
killed comparison, or belongs to another one, is waited for.
"""
import fcntl
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from mmpsw.compare.grid import Cell, Grid, missing, steps_done
from mmpsw.compare.runs import full_name

__all__ = ['Failure', 'Progressing', 'TrainingError', 'default_jobs',
           'explain', 'train']

# mmengine's log: "Epoch(train)  [1][50/80]  lr: ..." and "Iter(val) [16/16]
# mIoU: 70.1 ..."
_LOG_LINE = re.compile(r'(?:Epoch|Iter)\((train|val)\)\s*(?:\[\s*(\d+)\])?'
                       r'\[\s*(\d+)/(\d+)\](.*)')
_PAIR = re.compile(r'(?:val/)?(\S+): (-?[\d.]+(?:e[+-]?\d+)?|nan)(?!\S)')
# What of an epoch's time is training; the rest is its validation.
_TRAIN_SHARE = 0.9
_TAIL_LINES = 15
_POLL = 0.5


class TrainingError(Exception):
    """Runs did not end well."""


@dataclass(frozen=True)
class Failure:
    """A run that ended with an error.

    Attributes:
        cell: Which one.
        status: Its exit status.
        log: The file with all that it printed.
    """

    cell: Cell
    status: int
    log: Path


def default_jobs(gpus: Sequence[str]) -> int:
    """How many runs at once: one for each GPU, else for each free core.

    Two OpenMP threads of one process spin against anything else that runs,
    which makes it up to sixty times slower. So on a CPU a run has one thread,
    unless OMP_NUM_THREADS says otherwise.
    """
    if gpus:
        return len(gpus)
    threads = os.environ.get('OMP_NUM_THREADS', '')
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // max(1, int(threads) if threads.isdecimal() else 1))


def environment(index: int, gpus: Sequence[str]) -> dict[str, str]:
    """The environment of the runs in a slot: a GPU, or one thread."""
    env = dict(os.environ)
    if gpus:
        env['CUDA_VISIBLE_DEVICES'] = gpus[index % len(gpus)]
    else:
        env.setdefault('OMP_NUM_THREADS', '1')
    return env


def train(grid: Grid, bar: 'Progressing', jobs: int = 1,
          gpus: Sequence[str] = ()) -> list[Failure]:
    """Train what is not finished.

    Args:
        grid: What is to be trained; with a metric.
        bar: Told of all that happens.
        jobs: How many runs are trained at once.
        gpus: The devices, of which each run gets one; empty for CPU runs.

    Returns:
        list[Failure]: The runs that ended with an error.

    Raises:
        ValueError: The first validation did not log the metric.
    """
    todo = missing(grid)
    for cell in grid.cells:
        if cell not in todo:
            bar.finished(cell)
    slots: SimpleQueue = SimpleQueue()
    for index in range(jobs):
        slots.put(environment(index, gpus))
    stop = Event()

    def in_slot(cell: Cell) -> Failure | None:
        env = slots.get()
        try:
            return None if stop.is_set() else train_cell(grid, cell, bar, env,
                                                         stop)
        except BaseException:
            stop.set()
            raise
        finally:
            slots.put(env)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(in_slot, cell) for cell in todo]
        try:
            done = [future.result() for future in futures]
        except BaseException:
            # Nobody would see what an orphan does.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [failure for failure in done if failure is not None]


def train_cell(grid: Grid, cell: Cell, bar: 'Progressing', env: dict,
               stop: Event) -> Failure | None:
    """Train one run to its end, or wait for the process that does.

    Returns:
        Failure or None: None where it ended well.
    """
    log = grid.log(cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    with _lock(log.with_suffix('.lock'), stop, lambda: bar.say(
            f'\n{cell}: this run is being trained already, and is waited '
            'for')) as lock:
        done = steps_done(grid.run_dir(cell))
        if stop.is_set():
            return None
        status = 0
        if done < grid.max_steps():
            command = grid.command(cell)
            bar.started(cell, command, done)
            with open(log, 'ab') as file:
                start = file.tell()
                # To a file, not a pipe: the run outlives a killed
                # comparison, and its log is whole.
                process = subprocess.Popen(
                    [sys.executable, *command[1:]], env=env, pass_fds=[lock],
                    stdin=subprocess.DEVNULL, stdout=file,
                    stderr=subprocess.STDOUT)
            try:
                status = _wait(process, log, start, Follower(grid, cell, done,
                                                             bar), stop)
            finally:
                process.terminate()
                process.wait()
    if stop.is_set():
        return None
    if status:
        bar.failed(cell)
        return Failure(cell, status, log)
    bar.finished(cell)
    return None


def explain(failures: Sequence[Failure]) -> str:
    """Names the runs that failed, with the ends of their logs."""
    text = ''
    for failure in failures:
        tail = failure.log.read_text(errors='replace').splitlines()
        text += (f'{failure.cell} ended with exit status {failure.status}; '
                 f'the last lines of {failure.log}:\n')
        text += ''.join(f'    {line}\n' for line in tail[-_TAIL_LINES:])
    names = '; '.join(str(failure.cell) for failure in failures)
    return (f'{text}These runs failed: {names}. Mend what the lines above '
            'name and give the same command again: what is finished is kept.')


def _wait(process: subprocess.Popen, log: Path, start: int,
          follow: Callable[[str], None], stop: Event) -> int:
    """Follow a log until the process ends; stop it when told so."""
    with open(log, encoding='utf-8', errors='replace') as file:
        file.seek(start)
        rest = ''
        while True:
            status = process.poll()
            *lines, rest = (rest + file.read()).split('\n')
            for line in lines:
                follow(line)
            if status is not None or stop.is_set():
                return status or 0
            time.sleep(_POLL)


@contextmanager
def _lock(path: Path, stop: Event,
          waiting: Callable[[], None]) -> Iterator[int]:
    """A lock that the run's process inherits, and holds on its own."""
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


class Follower:
    """Turns a run's log lines into progress."""

    def __init__(self, grid: Grid, cell: Cell, done: int, bar: 'Progressing'):
        self.cell, self.bar, self.metric = cell, bar, grid.metric
        self.interval = grid.load().train_cfg.get('val_interval', 1)
        self.total = grid.max_steps()
        self.validated = done
        self.by_epoch = grid.by_epoch()

    def __call__(self, line: str) -> None:
        match = _LOG_LINE.search(line)
        if match is None:
            return
        phase, epoch, step, steps, rest = match.groups()
        if phase == 'train':
            self.bar.progress(self.cell, int(step) if not self.by_epoch else
                              int(epoch) - 1
                              + int(step) / int(steps) * _TRAIN_SHARE)
        elif step == steps:
            self.validated = min(self.total, int(epoch) if epoch else
                                 self.validated + self.interval)
            self.bar.progress(self.cell, self.validated)
            self.bar.value(self.cell, self.validated, *self._value(rest))

    def _value(self, rest: str) -> tuple[str, str]:
        pairs = {key: value for key, value in _PAIR.findall(rest)
                 if key not in ('data_time', 'time')}
        if not pairs:
            return '', 'nothing was measured'
        name = full_name(self.metric, list(pairs))
        if name is None:
            raise ValueError(
                f"{self.cell} was not validated by '{self.metric}', but by "
                f'{", ".join(pairs)}; give --metric one of these')
        return name, pairs[name]


class Progressing:
    """One bar over all runs; plain lines where there is no terminal."""

    def __init__(self, grid: Grid):
        self.steps = grid.max_steps()
        self.unit = 'epoch' if grid.by_epoch() else 'iteration'
        self.grid = grid
        self.done = {cell: 0.0 for cell in grid.cells}
        self.before = 0.0  # steps that cost no time now
        self.begun = time.monotonic()
        self.console = Console(highlight=False, markup=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn('{task.description}'), BarColumn(),
            TaskProgressColumn(), TextColumn('{task.fields[left]}'),
            console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(
            f'{len(self.done)} runs', total=self.steps * len(self.done),
            left='')

    def __enter__(self) -> 'Progressing':
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        self.console.print(text)
        self.console.file.flush()

    def started(self, cell: Cell, command: Sequence[str], done: int) -> None:
        """A run begins, or goes on after ``done`` steps."""
        self._skip(cell, done)
        number = list(self.done).index(cell) + 1
        self.say(f'\n[{number}/{len(self.done)}] {cell}\n'
                 f'$ {shlex.join(command)}\n  its output: '
                 f'{self.grid.log(cell)}')

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
        self.say(f'  {cell}: {self.unit} {step}/{self.steps}  {metric} {value}'
                 f'  {self._left()}')

    def _skip(self, cell: Cell, steps: float) -> None:
        self.before += steps
        self.done[cell] += steps

    def _left(self) -> str:
        done = sum(self.done.values())
        if done <= self.before:
            return ''
        elapsed = time.monotonic() - self.begun
        total = self.steps * len(self.done)
        return (f'({duration(elapsed / (done - self.before) * (total - done))}'
                ' left)')


def duration(seconds: float) -> str:
    """Seconds, as a person says them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f'{hours} h {minutes:02d} min'
    return f'{minutes} min {seconds:02d} s' if minutes else f'{seconds} s'

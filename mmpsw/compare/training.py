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
from collections.abc import Sequence
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from mmpsw.compare.grid import Cell, Grid, steps_done
from mmpsw.compare.runs import full_name

__all__ = ['Board', 'Training', 'TrainingError', 'default_jobs', 'train']

# mmengine's log: "Epoch(train)  [1][50/80]  lr: ..." and "Iter(val) [16/16]
# mIoU: 70.1 ..."
_LOG_LINE = re.compile(r'(?:Epoch|Iter)\((train|val)\)\s*(?:\[\s*(\d+)\])?'
                       r'\[\s*(\d+)/(\d+)\](.*)')
_PAIR = re.compile(r'(?:val/)?(\S+): (-?[\d.]+(?:e[+-]?\d+)?|nan)(?!\S)')
_TAIL_LINES = 15
_POLL = 0.5  # seconds


class TrainingError(Exception):
    """Runs did not end well; the message has the ends of their logs."""


def default_jobs(gpus: Sequence[str]) -> int:
    """How many runs at once: one for each GPU, else for each free core.

    Two OpenMP threads of one process spin against anything else that runs,
    which makes it up to sixty times slower. So on a CPU a run has one thread,
    unless OMP_NUM_THREADS says otherwise.
    """
    threads = os.environ.get('OMP_NUM_THREADS', '')
    cores = len(os.sched_getaffinity(0))
    return len(gpus) or max(
        1, cores // max(1, int(threads) if threads.isdecimal() else 1))


def environment(slot: int, gpus: Sequence[str]) -> dict[str, str]:
    """The environment of the runs in a slot: a GPU, or one thread."""
    if gpus:
        return {**os.environ, 'CUDA_VISIBLE_DEVICES': gpus[slot % len(gpus)]}
    return {'OMP_NUM_THREADS': '1', **os.environ}


def train(grid: Grid, jobs: int = 1, gpus: Sequence[str] = ()) -> list[Cell]:
    """Train what is not finished, with the progress on the terminal.

    Args:
        grid: What is to be trained; with a metric.
        jobs: How many runs are trained at once.
        gpus: The devices, of which each run gets one; empty for CPU runs.

    Returns:
        list[Cell]: The runs that ended with an error.

    Raises:
        ValueError: The first validation did not log the metric.
        KeyboardInterrupt: It was interrupted; its runs have ended.
    """
    failed = []
    slots = list(range(jobs))
    with Board(grid) as board:
        runs = [Training(grid, cell, board) for cell in grid.cells]
        waiting = [run for run in runs if not run.is_over()]
        running: dict[int, Training] = {}
        try:
            while waiting or running:
                for run in waiting[:]:
                    host = grid.host(run.cell)
                    if host in [other.cell for other in
                                [*waiting, *running.values()]]:
                        continue  # it rides along, and is over then
                    if slots and run.start(environment(slots[0], gpus)):
                        waiting.remove(run)
                        if run.process:
                            running[slots.pop(0)] = run
                for slot, run in list(running.items()):
                    status = run.follow()
                    if status is not None:
                        slots.append(slot)
                        del running[slot]
                    if status:
                        failed.append(run.cell)
                time.sleep(_POLL)
        except KeyboardInterrupt:
            raise KeyboardInterrupt('interrupted; the same command goes on '
                                    'where this one stopped') from None
        finally:  # nobody would see what an orphan does
            for run in running.values():
                run.process.terminate()
                run.process.wait()
    return failed


def explain(grid: Grid, failed: Sequence[Cell]) -> str:
    """Names the runs that failed, with the ends of their logs."""
    text = ''
    for cell in failed:
        lines = grid.log(cell).read_text(errors='replace').splitlines()
        text += f'{cell} failed; the last lines of {grid.log(cell)}:\n'
        text += ''.join(f'    {line}\n' for line in lines[-_TAIL_LINES:])
    return (f'{text}These runs failed: {"; ".join(map(str, failed))}. Mend '
            'what the lines above name and give the same command again: what '
            'is finished is kept.')


class Training:
    """The process of one run, and what it writes to its log."""

    def __init__(self, grid: Grid, cell: Cell, board: 'Board'):
        self.grid, self.cell, self.board = grid, cell, board
        self.log = grid.log(cell)
        self.process: subprocess.Popen | None = None
        self.validated = self.read_to = 0  # steps, and bytes of the log
        self.told = False

    def is_over(self) -> bool:
        """Whether nothing is left to train."""
        self.validated = steps_done(self.grid.run_dir(self.cell))
        if self.validated < self.grid.max_steps():
            return False
        self.board.say(f'\n{self.cell}: finished already, its results in '
                       f'{self.grid.run_dir(self.cell)}/ are used')
        self.board.skip(self.cell, self.validated)
        return True

    def start(self, env: dict[str, str]) -> bool:
        """Start it, unless it is over; False while another process is at it.

        The process inherits the lock, and holds it by itself.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log.with_suffix('.lock'), 'w') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not self.told:
                    self.board.say(f'\n{self.cell}: this run is being trained '
                                   'already, and is waited for')
                self.told = True
                return False
            if self.is_over():  # meanwhile
                return True
            command = self.grid.command(self.cell)
            number = self.grid.cells.index(self.cell) + 1
            self.board.skip(self.cell, self.validated)
            self.board.say(f'\n[{number}/{len(self.grid.cells)}] {self.cell}\n'
                           f'$ {shlex.join(command)}\n  its output: '
                           f'{self.log}')
            # To a file, not a pipe: the run outlives a killed comparison, and
            # its log is whole.
            with open(self.log, 'ab') as file:
                self.read_to = file.tell()
                self.process = subprocess.Popen(
                    [sys.executable, *command[1:]], env=env,
                    pass_fds=[lock.fileno()], stdin=subprocess.DEVNULL,
                    stdout=file, stderr=subprocess.STDOUT)
        return True

    def follow(self) -> int | None:
        """Read what is new in the log; the exit status, at the end."""
        status = self.process.poll()
        with open(self.log, 'rb') as file:
            file.seek(self.read_to)
            *lines, rest = file.read().split(b'\n')
            self.read_to = file.tell() - len(rest)
        for line in lines:
            self.read(line.decode(errors='replace'))
        if status:
            self.board.say(f'{self.cell}: ended with an error')
            self.board.skip(self.cell, self.grid.max_steps())
        return status

    def read(self, line: str) -> None:
        """Turn a line of the log into progress."""
        match = _LOG_LINE.search(line)
        if match is None:
            return
        phase, epoch, step, steps, rest = match.groups()
        if phase == 'train':
            self.board.progress(
                self.cell, int(epoch) - 1 + int(step) / int(steps)
                if self.grid.by_epoch() else int(step))
        elif step == steps:
            self.validated = min(self.grid.max_steps(), int(epoch) if epoch
                                 else self.validated + self.grid.interval())
            self.board.progress(self.cell, self.validated)
            self.board.value(self.cell, self.validated, self._value(rest))

    def _value(self, rest: str) -> str:
        pairs = {key: value for key, value in _PAIR.findall(rest)
                 if key not in ('data_time', 'time')}
        if not pairs:
            return 'nothing was measured'
        name = full_name(self.grid.metric, list(pairs))
        if name is None:
            raise ValueError(
                f"{self.cell}, was not validated by '{self.grid.metric}', but "
                f'by {", ".join(pairs)}; give --metric one of these')
        return f'{name} {pairs[name]}'


class Board:
    """One bar over all runs; plain lines where there is no terminal."""

    def __init__(self, grid: Grid):
        self.steps = grid.max_steps()
        self.unit = 'epoch' if grid.by_epoch() else 'iteration'
        self.done = dict.fromkeys(grid.cells, 0.0)
        self.before = 0.0  # steps that cost no time now
        self.begun = time.monotonic()
        console = Console(highlight=False, markup=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn('{task.description}'), BarColumn(),
            TaskProgressColumn(), TextColumn('{task.fields[left]}'),
            console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task(
            f'{len(self.done)} runs', total=self.steps * len(self.done),
            left='')

    def __enter__(self) -> 'Board':
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        self.bar.console.print(text)
        self.bar.console.file.flush()

    def skip(self, cell: Cell, done: float) -> None:
        """A run has this behind it, without having been trained now."""
        self.before += done - self.done[cell]
        self.progress(cell, done)

    def progress(self, cell: Cell, done: float) -> None:
        """How many steps a run has behind it."""
        self.done[cell] = max(done, self.done[cell])
        self.bar.update(self.task, completed=sum(self.done.values()),
                        left=self._left())

    def value(self, cell: Cell, step: int, value: str) -> None:
        """A validation was logged."""
        self.say(f'  {cell}: {self.unit} {step}/{self.steps}  {value}  '
                 f'{self._left()}')

    def _left(self) -> str:
        done = sum(self.done.values())
        if done <= self.before:
            return ''
        pace = (time.monotonic() - self.begun) / (done - self.before)
        left = self.steps * len(self.done) - done
        return f'({timedelta(seconds=round(pace * left))} left)'

"""Trains the runs of a grid side by side, and shows how far they are.

A run that fails does not stop the others, unless it is the first one that
the others are compared with, before anything was validated.
"""
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from mmpsw.compare.grid import Cell, Grid
from mmpsw.compare.runs import full_name, measured, parse_line

__all__ = ['Board', 'Training', 'TrainingError', 'explain', 'slots', 'train']

_TAIL_LINES = 15
_POLL = 0.5  # seconds
_AN_HOUR = 3600.  # over which a pace is measured


class TrainingError(Exception):
    """Runs did not end well; the message has the ends of their logs."""


def slots(gpus: Sequence[str], processes: int = 1,
          jobs: int | None = None) -> list[dict[str, str]]:
    """The environments of the runs that are trained at once.

    Each has as many GPUs as processes, or on a CPU as many cores. Two OpenMP
    threads of one process spin against anything else that runs, which makes
    it up to sixty times slower: so on a CPU a process has one thread, unless
    OMP_NUM_THREADS says otherwise.

    Args:
        gpus: As CUDA_VISIBLE_DEVICES names them; empty for CPU runs.
        processes: Of each run.
        jobs: How many, if not as many as there is room for.

    Raises:
        ValueError: There are fewer GPUs than processes.
    """
    if gpus and len(gpus) < processes:
        raise ValueError(f'--gpus-per-run {processes} is not possible, because'
                         f' torch sees {len(gpus)}; give {len(gpus)} or less')
    if gpus:
        room = [dict(os.environ, CUDA_VISIBLE_DEVICES=','.join(
            gpus[first:first + processes])) for first in range(
                0, len(gpus) - processes + 1, processes)]
    else:
        threads = os.environ.get('OMP_NUM_THREADS', '')
        threads = max(1, int(threads) if threads.isdecimal() else 1)
        cores = len(os.sched_getaffinity(0))
        room = max(1, cores // (threads * processes)) * [
            {'OMP_NUM_THREADS': '1', **os.environ}]
    return [room[slot % len(room)] for slot in range(jobs or len(room))]


def train(grid: Grid, room: Sequence[dict[str, str]],
          lock: int | None = None) -> list[Cell]:
    """Train what is not finished, with the progress on the terminal.

    Args:
        grid: What is to be trained; with a metric.
        room: The environments of the runs that are trained at once.
        lock: See :func:`mmpsw.compare.grid.hold`.

    Returns:
        list[Cell]: The runs that ended with an error, and what rode along.

    Raises:
        ValueError: The first validation did not log the metric.
        KeyboardInterrupt: It was interrupted; its runs have ended.
    """
    hosts = {cell: grid.host(cell) for cell in grid.cells}
    own = [cell for cell in grid.cells if hosts[cell] is None]
    failed: list[Cell] = []
    free = list(room)
    running: list[Training] = []
    with Board(grid, own) as board:
        waiting = [cell for cell in own if not board.is_over(cell)]
        validated = len(waiting) < len(own)
        try:
            while waiting or running:
                while waiting and free:
                    with uninterrupted():  # a run that nobody knew of
                        running.append(Training(grid, waiting.pop(0), board,
                                                free.pop(0), lock))
                for run in running[:]:
                    status = run.follow()
                    validated |= run.validated > 0
                    if status is None:
                        continue
                    running.remove(run)
                    free.append(run.env)
                    if status:
                        failed += [cell for cell, host in hosts.items()
                                   if run.cell in (cell, host)]
                    if status and run.cell.arm == grid.first and not validated:
                        board.say('Nothing else is begun, because it would '
                                  'fail in the same way')
                        return failed
                time.sleep(_POLL)
        except KeyboardInterrupt:
            raise KeyboardInterrupt('interrupted; the same command '
                                    'continues from here') from None
        finally:  # nobody would see what an orphan does
            for run in running:
                run.process.terminate()
                run.process.wait()
    return failed


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until what is within is done."""
    late: list[int] = []
    before = {number: signal.signal(number, lambda got, _: late.append(got))
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in late:
        signal.raise_signal(number)


def explain(grid: Grid, failed: Sequence[Cell]) -> str:
    """Names the runs that failed, with the ends of their logs."""
    text = ''
    for cell in failed:
        if grid.log(cell).exists():
            lines = _lines(grid.log(cell))[-_TAIL_LINES:]
            text += f'{cell} failed; the last lines of {grid.log(cell)}:\n'
            text += ''.join(f'    {line}\n' for line in lines)
    return (f'{text}These runs failed: {"; ".join(map(str, failed))}. Mend '
            'what the lines above name and give the same command again: what '
            'is finished is kept.')


class Training:
    """The process of one run, and what it writes to scalars.json."""

    def __init__(self, grid: Grid, cell: Cell, board: 'Board',
                 env: dict[str, str], lock: int | None = None):
        self.grid, self.cell, self.board, self.env = grid, cell, board, env
        self.folder, self.log = grid.run_dir(cell), grid.log(cell)
        self.iteration = self.read_to = 0  # the last, and bytes of the file
        self.validated = grid.done(cell)
        self.before = {*self._files()}
        command = grid.command(cell)
        board.say(f'\n[{board.begin(cell)}] {cell}\n$ {shlex.join(command)}\n'
                  f'  its output: {self.log}')
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # To a file, not a pipe: the run's log is whole, whatever happens.
        with open(self.log, 'ab') as file:
            self.process = subprocess.Popen(
                [sys.executable, *command[1:]], env=env,
                pass_fds=[] if lock is None else [lock],
                stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT)

    def follow(self) -> int | None:
        """Read what is new in its log; the exit status, at the end."""
        status = self.process.poll()
        for line in self._new_lines():
            if 'iter' in line:
                self.iteration = line['iter']
            else:
                self.validated = line['step']
                if self.validated:  # so many iterations are an epoch
                    self.board.pace = self.iteration / self.validated
            self.board.progress(self.cell, self._steps())
            if 'iter' not in line:
                self.board.value(self.cell, self.validated, self._value(line))
        if status:
            last = next(filter(str.strip, reversed(_lines(self.log))), '')
            self.board.say(f'{self.cell} failed: {last.strip()}')
            self.board.give_up(self.cell)
        return status

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob('*/vis_data/scalars.json'))

    def _new_lines(self) -> list[dict]:
        """The whole lines that this session has written since."""
        new = [path for path in self._files() if path not in self.before]
        if not new:
            return []
        with open(new[-1], 'rb') as file:
            file.seek(self.read_to)
            *lines, rest = file.read().split(b'\n')
            self.read_to = file.tell() - len(rest)
        return [parse_line(line) for line in lines]

    def _steps(self) -> float:
        """How far it is: an epoch's length is known when one is over."""
        pace = self.board.pace if self.grid.by_epoch(self.cell.arm) else 1
        until = self.validated + self.grid.interval(self.cell.arm)
        return min(until, max(self.validated, self.iteration / pace
                              if pace else 0))

    def _value(self, line: dict) -> str:
        cfg = self.grid.load(self.cell.arm)
        found = measured(line, cfg)
        name = full_name(self.grid.metric, list(found))
        if found and name is None:
            raise ValueError(
                f"{self.cell}, was not validated by '{self.grid.metric}', but "
                f'by {", ".join(found)}; give --metric one of these')
        return f'{name} {found[name]:.4g}' if found else 'nothing was measured'


class Board:
    """One bar over the runs; plain lines where there is no terminal."""

    def __init__(self, grid: Grid, cells: Sequence[Cell]):
        self.grid, self.cells = grid, cells
        self.pace = 0.  # iterations an epoch
        self.steps = {cell: grid.max_steps(cell.arm) for cell in cells}
        self.done = {cell: min(float(grid.done(cell)), steps)
                     for cell, steps in self.steps.items()}
        console = Console(highlight=False, markup=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn('{task.description}'), BarColumn(),
            TaskProgressColumn(), TimeRemainingColumn(), console=console,
            disable=not console.is_terminal, speed_estimate_period=_AN_HOUR)
        self.task = self.bar.add_task(
            f'{len(cells)} runs', total=sum(self.steps.values()),
            completed=sum(self.done.values()))

    def __enter__(self) -> 'Board':
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        self.bar.console.print(text)
        self.bar.console.file.flush()

    def is_over(self, cell: Cell) -> bool:
        """Whether nothing of a run is left to train, which is said."""
        if self.done[cell] < self.steps[cell]:
            return False
        self.say(f'\n{cell}: finished already, its results in '
                 f'{self.grid.run_dir(cell)}/ are used')
        return True

    def begin(self, cell: Cell) -> str:
        """The number of a run that begins, of how many."""
        return f'{self.cells.index(cell) + 1}/{len(self.cells)}'

    def progress(self, cell: Cell, done: float) -> None:
        """How many steps a run has behind it."""
        self.done[cell] = max(done, self.done[cell])
        self.bar.update(self.task, completed=sum(self.done.values()))

    def give_up(self, cell: Cell) -> None:
        """A run failed: nothing of it is to come."""
        self.steps[cell] = self.done[cell]
        self.bar.update(self.task, total=sum(self.steps.values()))

    def value(self, cell: Cell, step: int, value: str) -> None:
        """A validation was logged."""
        unit = 'epoch' if self.grid.by_epoch(cell.arm) else 'iteration'
        left = self.bar.tasks[0].time_remaining
        shown = ('' if left is None else
                 f'  ({timedelta(seconds=round(left))} left)')
        self.say(f'  {cell}: {unit} {step}/{self.steps[cell]:g}  {value}'
                 f'{shown}')


def _lines(log: Path) -> list[str]:
    """Without what torchrun says below the error of a process."""
    lines = log.read_text(errors='replace').splitlines()
    ends = [number for number, line in enumerate(lines)
            if '/elastic/multiprocessing/api.py' in line
            and number > len(lines) - 80]
    return lines[:ends[0]] if ends else lines

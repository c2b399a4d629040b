"""Trains a small detector with and without PSW, and shows the difference.

What it runs is what a user would type: ``tools/train.py`` on a config, once
as it is and once with ``--psw``. The third arm is the control: it averages as
PSW does but never writes back, so that one can see what the writing back
does.
"""
import dataclasses
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from mmpsw.commands import options, zoo
from mmpsw.datasets.digits import generate

_CHECKOUT = Path(__file__).resolve().parents[2]
_DATA = Path('data/digits')
_METRIC = 'coco/bbox_mAP'
_SHORT_EPOCHS = 2
_SCORE_THR = 0.3
_SETTINGS = 'quickstart.json'

# mmengine's log: "Epoch(train)  [1][50/80]  lr: ..." and
# "Epoch(val) [1][16/16]    coco/bbox_mAP: 0.1 ..."
_LOG_LINE = re.compile(
    r'Epoch\((train|val)\)\s*\[\s*(\d+)\]\[\s*(\d+)/(\d+)\]'
    rf'(?:.*{re.escape(_METRIC)}: (\S+))?')
# What of an epoch's time is training; the rest is its validation.
_TRAIN_SHARE = 0.9
_TAIL_LINES = 15


class TrainingError(Exception):
    """The training of an arm did not end well."""


@dataclass(frozen=True)
class Plan:
    """What is trained, and where its results go.

    Attributes:
        config: The path of the config.
        arms: Each arm's own options of ``tools/train.py``, by its name.
        epochs: How long each arm is trained.
        seed: The random seed of all of them.
        work_dir: The folder of all results.
    """

    config: str
    arms: dict[str, tuple[str, ...]]
    epochs: int
    seed: int
    work_dir: Path

    def arm_dir(self, arm: str) -> Path:
        """The work directory of an arm's training."""
        return self.work_dir / arm

    def log(self, arm: str) -> Path:
        """The file that takes what an arm's training prints."""
        return self.work_dir / f'{arm}.log'

    def command(self, arm: str) -> list[str]:
        """The command that trains an arm, or goes on with its training."""
        # The arm's options last: --cfg-options takes all that follows.
        return [
            'python', _shown(_CHECKOUT / 'tools/train.py'), self.config,
            '--work-dir', str(self.arm_dir(arm)), '--seed', str(self.seed),
            *self._resume(arm), *self.arms[arm]
        ]

    def _resume(self, arm: str) -> list[str]:
        folder = self.arm_dir(arm)
        if not folder.exists():
            return []
        done = epochs_done(folder)
        # Not from the last checkpoint: it may have been written just before
        # a validation that was interrupted, whose point would be missing.
        return (['--resume', str(folder / f'epoch_{done}.pth')]
                if done else ['--overwrite'])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``tools/quickstart.py``; returns the exit status."""
    args = parse_args(argv)
    try:
        return options.report_errors(lambda: quickstart(args))
    except TrainingError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nInterrupted. The same command goes on from the last '
              'whole epoch.', file=sys.stderr)
        return 130


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = ArgumentParser(
        prog='quickstart.py',
        description='Train a RetinaNet on handwritten digits with and '
        'without PSW, and show the difference. Nothing is downloaded.')
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/quickstart'),
        help='folder of the results. Finished trainings in it are used, and '
        'an interrupted one is gone on with; where its settings are others, '
        'a numbered folder beside it is taken')
    parser.add_argument(
        '--psw',
        default='pwalks',
        metavar='TECHNIQUE',
        help='pswa, pwalks, pswm, or the path of a file that defines psw')
    parser.add_argument('--seed', type=int, default=0, help='the random seed')
    parser.add_argument(
        '--short',
        action='store_true',
        help=f'{_SHORT_EPOCHS} epochs and no control arm: shows that '
        'everything works, and nothing else')
    parser.add_argument(
        '--fresh',
        action='store_true',
        help='train anew, in another folder, even where results exist')
    return parser.parse_args(argv)


def quickstart(args: Namespace) -> None:
    """Does what the command line says.

    Raises:
        ValueError: An option is wrong.
        TrainingError: A training ended with an error.
    """
    plan = make_plan(args)
    generate(_DATA)
    work_dir = take_work_dir(plan.work_dir, settings_of(plan, args.psw),
                             args.fresh)
    plan = dataclasses.replace(plan, work_dir=work_dir)
    print(f'Training {len(plan.arms)} times for {plan.epochs} epochs, with '
          'equal seeds and data order:', ', '.join(plan.arms))
    print(f'Everything is written to {work_dir}/')
    train_all(plan)
    show(plan)


def make_plan(args: Namespace) -> Plan:
    """Turns the command line into the trainings that it asks for.

    Raises:
        ValueError: There is no such technique, or its name is taken.
    """
    zoo.psw_fragment(args.psw)
    name = zoo.psw_name(args.psw)
    if name in ('baseline', 'control'):
        raise ValueError(
            f"--psw '{args.psw}' cannot be used, because another arm is "
            f"called '{name}'; rename the file")
    config = _shown(_CHECKOUT / 'configs/det/retinanet_r18_digits.py')
    arms = {'baseline': [], name: ['--psw', args.psw]}
    cfg_options = {arm: [] for arm in arms}
    epochs = Config.fromfile(config).train_cfg.max_epochs
    if args.short:
        epochs = _SHORT_EPOCHS
        for arm in arms:
            cfg_options[arm].append(f'train_cfg.max_epochs={epochs}')
    else:
        arms['control'] = ['--psw', args.psw]
        cfg_options['control'] = ['optim_wrapper.psw.write_back=False']
    for arm, pairs in cfg_options.items():
        arms[arm] += ['--cfg-options', *pairs] if pairs else []
    return Plan(
        config=config,
        arms={arm: tuple(extra) for arm, extra in arms.items()},
        epochs=epochs,
        seed=args.seed,
        work_dir=args.work_dir)


def settings_of(plan: Plan, psw: str) -> dict:
    """What two quickstarts must share to be the same experiment."""
    config = Config.fromfile(plan.config).pretty_text
    return dict(
        config=hashlib.sha256(config.encode()).hexdigest(),
        data=json.loads((_DATA / 'parameters.json').read_text()),
        psw=zoo.psw_fragment(psw),
        arms={arm: list(extra) for arm, extra in plan.arms.items()},
        epochs=plan.epochs,
        seed=plan.seed)


def take_work_dir(base: Path, settings: dict, fresh: bool = False) -> Path:
    """Finds the folder of an experiment, or makes a new one.

    Args:
        base: The folder that the user named; ``base_2``, ``base_3``, ... are
            taken where it holds something else.
        settings: What :func:`settings_of` returned.
        fresh: Whether to pass by an equal experiment.

    Returns:
        Path: A folder with these settings, and nothing of others.
    """
    number = 1
    while True:
        folder = base if number == 1 else Path(f'{base}_{number}')
        if not folder.exists() or _is_empty(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _SETTINGS).write_text(json.dumps(settings, indent=1))
            return folder
        if not fresh and _read_settings(folder) == settings:
            return folder
        number += 1


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _read_settings(folder: Path) -> dict | None:
    try:
        return json.loads((folder / _SETTINGS).read_text())
    except (OSError, ValueError):
        return None


def train_all(plan: Plan) -> None:
    """Trains the arms one after the other, where they are not finished.

    Raises:
        TrainingError: One of them ended with an error; the rest is left.
    """
    done = {arm: epochs_done(plan.arm_dir(arm)) for arm in plan.arms}
    with _Progress(plan.epochs * len(plan.arms), sum(done.values())) as bar:
        for arm, epochs in done.items():
            if epochs >= plan.epochs:
                bar.say(f'\n{arm}: finished already, {plan.arm_dir(arm)}/ is '
                        'used (--fresh trains anew)')
                continue
            command = plan.command(arm)
            bar.say(f'\n$ {shlex.join(command)}')
            bar.say(f'  its output: {plan.log(arm)}')
            start_training(command, plan.log(arm),
                           bar.for_arm(plan.epochs, epochs))


def epochs_done(arm_dir: Path) -> int:
    """How many epochs a training has behind it, validation included."""
    # Here and below: what imports torch comes late, because it takes seconds
    # that a wrong option should not cost.
    from mmpsw.compare.runs import validated_steps
    return max(validated_steps(arm_dir), default=0)


class _Progress:
    """One bar over the epochs of all arms; plain lines without a terminal."""

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.done_before = self.done = float(done)
        self.started = time.monotonic()
        self.console = Console(highlight=False, markup=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn('{task.fields[left]}'),
            console=self.console,
            disable=not self.console.is_terminal)
        self.task = self.bar.add_task('training', total=total, completed=done,
                                      left='')

    def __enter__(self) -> '_Progress':
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Prints a line, above the bar."""
        self.bar.console.print(text)
        self.console.file.flush()

    def for_arm(self, epochs: int,
                done_before: int) -> Callable[[float, str | None], None]:
        """What is to be told of an arm's progress.

        Args:
            epochs: How many the arm has.
            done_before: How many of them an interrupted training has done.
        """
        others = self.done - done_before

        def update(done: float, value: str | None) -> None:
            self.done = others + done
            left = self._left()
            self.bar.update(self.task, completed=self.done, left=left)
            if value is not None:
                self.say(f'  epoch {done:2.0f}/{epochs}  {_METRIC} {value}'
                         f'  {left}')

        return update

    def _left(self) -> str:
        finished = self.done - self.done_before
        if not finished:
            return ''
        elapsed = time.monotonic() - self.started
        seconds = elapsed / finished * (self.total - self.done)
        return f'({_duration(seconds)} left)'


def start_training(command: Sequence[str], log: Path,
                   report: Callable[[float, str | None], None]) -> None:
    """Runs a training command and follows what it logs.

    Args:
        command: The command; ``python`` is this interpreter.
        log: The file that its output is added to.
        report: Called with the epochs done so far (a fraction within an
            epoch), and after a validation with the metric's value as logged
            (None otherwise).

    Raises:
        TrainingError: The command ended with an error.
    """
    executable = [sys.executable, *command[1:]]
    lines = []
    with open(log, 'a', encoding='utf-8') as file, subprocess.Popen(
            executable, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, encoding='utf-8', errors='replace') as process:
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                lines = [*lines[1 - _TAIL_LINES:], line]
                _report_line(line, report)
        except BaseException:
            # Nobody would see what an orphan does.
            process.terminate()
            raise
    if process.returncode:
        tail = ''.join(f'    {line}' for line in lines)
        raise TrainingError(
            f'this training ended with exit status {process.returncode}:\n'
            f'  {shlex.join(command)}\nThe last lines of {log}:\n{tail}'
            'Mend what they name and give the same command again: what is '
            'finished is kept.')


def _report_line(line: str,
                 report: Callable[[float, str | None], None]) -> None:
    match = _LOG_LINE.search(line)
    if not match:
        return
    phase, epoch, step, steps, value = match.groups()
    if phase == 'train':
        share = int(step) / int(steps) * _TRAIN_SHARE
        report(int(epoch) - 1 + share, None)
    elif step == steps:
        report(float(epoch), value or 'not measured: no box was found')


def show(plan: Plan) -> None:
    """Prints the table and the files that show what the arms learned."""
    print('\nDrawing the curves and the detections ...', flush=True)
    from mmpsw.compare import plots, table
    from mmpsw.compare.runs import Arm, read_run
    arms = [
        Arm(arm, (read_run(plan.arm_dir(arm), arm, _METRIC), ))
        for arm in plan.arms
    ]
    title = 'RetinaNet on handwritten digits'
    curves = plots.plot_curves(arms, plan.work_dir / 'curves.png', title,
                               f'one run an arm, seed {plan.seed}')
    picture = _draw_picture(plan, title)
    report = plan.work_dir / 'comparison.md'
    report.write_text(table.as_markdown(arms, 'baseline') + '\n')
    print(f'\n{_METRIC} on the validation scenes:\n')
    print(table.as_text(arms, 'baseline'))
    print(_explain(plan))
    print(f'curves:     {curves}\npicture:    {picture}\ntable:      {report}')
    print(_next_steps(plan))


def _draw_picture(plan: Plan, title: str) -> Path:
    from mmpsw.compare import detections
    from mmpsw.engine.resume import allow_resume
    allow_resume()
    checkpoints = {
        arm: plan.arm_dir(arm) / f'epoch_{plan.epochs}.pth'
        for arm in plan.arms
    }
    return detections.plot_detections(
        plan.config, checkpoints, plan.work_dir / 'detections.png',
        score_thr=_SCORE_THR,
        title=f'{title}: the first validation scenes, '
        f'score at least {_SCORE_THR}')


def _explain(plan: Plan) -> str:
    lines = [
        '',
        'epochs to match: the first epoch that reaches the best of the '
        "baseline's;",
        'drop/epoch: how much is lost, on average, from an epoch to the next;',
        's/iter: as it was here; other work on the machine shows in it.'
    ]
    if 'control' in plan.arms:
        lines.append('control: averages too, but trains on from the weights '
                     'as they were.')
    if plan.epochs == _SHORT_EPOCHS:
        lines.append('Two epochs show that everything works, and nothing '
                     'about the arms.')
    lines += [
        'One seed on a toy is an illustration and no evidence: judge by '
        'several seeds', 'on your own task, and against the control.', ''
    ]
    return '\n'.join(lines)


def _next_steps(plan: Plan) -> str:
    psw = plan.arms[list(plan.arms)[1]][1]
    train = _shown(_CHECKOUT / 'tools/train.py')
    return ('\nHow to go on (README.md says more):\n'
            f'  python {train} CONFIG --psw {psw}   trains any config of '
            'mmdet, mmseg, mmpretrain\n'
            '  two lines in a config of yours do the same: see '
            'configs/det/*_pwalks.py')


def _shown(path: Path) -> str:
    """A path as a user in this folder would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith('..') else relative


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes} min {seconds:02d} s' if minutes else f'{seconds} s'

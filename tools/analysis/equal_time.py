"""Draws a comparison's curves against steps, and against CPU time.

    equal_time.py CONFIG REPORT [--steps 20]

REPORT is the folder that compare.py report has written. Each of its arms is
trained for a few steps, one after the other, and the CPU time of a step is
the median. Unlike the time on the clock it does not depend on what else the
machine does, so that arms can be compared at equal cost also on a busy one.
Validations are left out. It writes REPORT/equal_time.png and
REPORT/step_seconds.csv.
"""
import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpsw import configs
from mmpsw.commands import launch, options, train
from mmpsw.compare import plots
from mmpsw.configs import split_arm

COLOURS = '#1A1A1A', *(colour for colour, _ in plots.LOOKS)


class StepSeconds(Hook):
    """The process's CPU seconds of each step, with its data."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def before_train_epoch(self, runner: Runner) -> None:
        self.begun = time.process_time()

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        now = time.process_time()
        self.seconds.append(now - self.begun)
        self.begun = now


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='equal_time.py', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('report', type=Path)
    parser.add_argument('--steps', type=options.at_least(2), default=20,
                        help='steps of each arm that are timed (default: 20)')
    args = parser.parse_args(argv)
    return options.report_errors(
        lambda: run(args.config, args.report, args.steps))


def run(config: str, report: Path, steps: int) -> None:
    """Times the arms of a report, and draws."""
    for name in ('points.csv', 'table.csv'):
        if not (report / name).is_file():
            raise ValueError(f"'{report / name}' does not exist; give the "
                             'folder that compare.py report has written')
    points = pd.read_csv(report / 'points.csv')
    table = pd.read_csv(report / 'table.csv')
    if table.unit[0] != 'iteration':
        raise ValueError(f"'{report}' counts epochs, whose length in steps "
                         'it does not say; give one that counts iterations')
    seconds = {arm: step_seconds(config, arm, steps) for arm in table.arm}
    pd.Series(seconds, name='seconds').rename_axis('arm').to_csv(
        report / 'step_seconds.csv')
    figure = draw(points, seconds, f'validation {table.metric[0]} '
                  f'({table.better[0]} is better)')
    figure.savefig(report / 'equal_time.png')
    print('\n'.join(f'{arm}: {value:.4f} s a step'
                    for arm, value in seconds.items()))


def step_seconds(config: str, arm: str, steps: int) -> float:
    """The median CPU time of a step of an arm, after two of warming up."""
    names = [name if name in configs.known_methods() else f'variants/{name}'
             for name in split_arm(arm)]
    with tempfile.TemporaryDirectory() as folder:
        cfg = train.build_config(train.parse_args(
            [config, '--with', *names, '--work-dir', folder, '--seed', '0',
             '--cfg-options', f'train_cfg.max_iters={steps + 2}',
             f'train_cfg.val_interval={10 * steps}',
             'default_hooks.checkpoint.interval=-1',
             'default_hooks.checkpoint.save_best=None']))
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        runner, timer = launch.build_runner(cfg), StepSeconds()
        runner.register_hook(timer, priority='LOWEST')
        runner.train()
    return statistics.median(timer.seconds[2:])


def draw(points: pd.DataFrame, seconds: Mapping[str, float],
         label: str) -> Figure:
    """The mean over seeds, and their least and greatest value.

    Args:
        points: Columns arm, seed, step and value.
        seconds: Those of a step, by arm.
        label: What a value is.
    """
    figure = Figure(figsize=(9, 4), dpi=150, layout='constrained')
    panels = figure.subplots(1, 2, sharey=True)
    for (arm, second), colour in zip(seconds.items(), COLOURS):
        over = points[points.arm == arm].groupby('step').value
        for panel, scale in zip(panels, (1, second)):
            x = over.mean().index * scale
            panel.plot(x, over.mean(), marker='o', markersize=3,
                       color=colour, label=arm)
            panel.fill_between(x, over.min(), over.max(), color=colour,
                               alpha=0.12, linewidth=0)
    panels[0].set(xlabel='steps', ylabel=label)
    panels[1].set(xlabel='CPU seconds of training, one thread')
    panels[1].legend(frameon=False, fontsize=8)
    for panel in panels:
        panel.grid(color='#E2E2E2')
        panel.spines[['top', 'right']].set_visible(False)
    return figure


if __name__ == '__main__':
    sys.exit(main())

"""Trains a config in several ways, and shows what becomes of its neurons.

    hyperspherical_energy.py CONFIG --arms baseline orthogonal --seed 0

For each convolution the hyperspherical energy before and after the run, a
number and a bar: how much in each other's way its neurons point. For the arms
with orthogonal maps also the largest entry of |Q^T Q - I| of each layer after
each epoch. Writes energy.csv, energy.png and errors.csv; no checkpoints.
"""
import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmpsw import configs
from mmpsw.commands import launch, options, train
from mmpsw.engine import OrthogonalHook
from mmpsw.methods.orthogonal import hyperspherical_energy
from mmpsw.models import unwrapped


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: run(args))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = argparse.ArgumentParser(
        prog='hyperspherical_energy.py', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_config(parser)
    parser.add_argument('--arms', nargs='+', metavar='NAME',
                        default=['baseline', 'orthogonal'],
                        help='names that --with takes')
    parser.add_argument('--seed', type=int, default=0, help='the random seed')
    options.add_out(parser, 'work_dirs/CONFIG/energy')
    options.add_cfg_options(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Trains each arm, and writes what was found."""
    stem = Path(configs.resolve_config(args.config)).stem
    out = options.out_folder(args.out or Path('work_dirs', stem, 'energy'),
                             ['energy.*', 'errors.csv'], args.overwrite)
    watched = {arm: watch(args, arm, out) for arm in args.arms}
    energy = pd.concat(
        {arm: pd.DataFrame(dict(before=seen.before, after=seen.after))
         for arm, seen in watched.items()}, names=['arm', 'layer'])
    energy['change'] = energy.after / energy.before - 1
    energy.to_csv(out / 'energy.csv')
    draw(energy).savefig(out / 'energy.png')
    errors = pd.concat({arm: pd.DataFrame(seen.errors)
                        for arm, seen in watched.items()},
                       names=['arm', 'validation']).dropna(how='all')
    errors.to_csv(out / 'errors.csv')
    largest = energy.change.abs().groupby('arm', sort=False).max()
    print(pd.DataFrame({
        'largest change of energy': largest,
        'largest |Q^T Q - I|': errors.max(axis=1).groupby('arm').max()
    }).reindex(args.arms).to_string(float_format='{:.2g}'.format))
    print(*sorted(out.glob('e*.*')), sep='\n')


def watch(args: argparse.Namespace, arm: str, out: Path) -> 'Watch':
    """Trains one arm, without checkpoints."""
    run_args = train.parse_args([
        args.config, '--with', arm, '--seed', str(args.seed), '--work-dir',
        str(out / Path(arm).stem), '--overwrite'])
    run_args.cfg_options = args.cfg_options
    cfg = train.build_config(run_args)
    cfg.default_hooks = dict(cfg.get('default_hooks') or {}, checkpoint=None)
    train.verify(cfg, run_args)
    seen = Watch()
    runner = launch.build_runner(cfg)
    runner.register_hook(seen, priority='LOWEST')
    runner.train()
    return seen


class Watch(Hook):
    """Each convolution's energy at both ends, and the maps' errors."""

    def __init__(self) -> None:
        self.errors: list[dict[str, float]] = []

    def before_train(self, runner: Runner) -> None:
        """The start."""
        self.before = energies(runner.model)

    def after_train(self, runner: Runner) -> None:
        """The end."""
        self.after = energies(runner.model)

    def before_val_epoch(self, runner: Runner) -> None:
        """What is validated."""
        self.errors.append({
            name: error for hook in runner.hooks
            if isinstance(hook, OrthogonalHook)
            for training in hook.trainings.values()
            for name, error in training.errors().items()})


def energies(model: nn.Module) -> dict[str, float]:
    """By the layers' names; those with one neuron have none."""
    return {name: hyperspherical_energy(module.weight)
            for name, module in unwrapped(model).named_modules()
            if isinstance(module, nn.Conv2d) and len(module.weight) > 1}


def draw(energy: pd.DataFrame) -> Figure:
    """A bar for each layer's energy at the start, and after each arm."""
    after = energy.after.unstack('arm', sort=False)
    table = pd.concat([energy.before.groupby('layer', sort=False).first()
                       .rename('at the start'), after], axis=1)
    figure = Figure((8, 0.06 * table.size + 1.5), layout='constrained')
    axes = figure.subplots()
    table[::-1].plot.barh(ax=axes, width=0.8, legend=False, ylabel='')
    axes.set_xlabel('hyperspherical energy (mean over pairs of neurons)')
    figure.legend(loc='outside upper center', frameon=False, ncols=3)
    axes.set(xlim=(table.min().min() * 0.95, table.max().max() * 1.02))
    return figure


if __name__ == '__main__':
    raise SystemExit(main())

"""Draws Hoyer's sparsity of the weights that LpSGD trains against p.

    lp_sgd_sparsity.py work_dirs/compare_CONFIG/*/seed_0/epoch_10.pth

A checkpoint holds each weight's v and p, of which the weight follows. Writes
hoyer.csv, a row for each checkpoint and p, and hoyer.png.
"""
import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from mmpsw.commands import options
from mmpsw.methods.sparsity import hoyer


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='lp_sgd_sparsity.py', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoints', nargs='+', type=Path)
    options.add_out(parser, 'work_dirs/hoyer')
    args = parser.parse_args(argv)
    return options.report_errors(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Writes what the command line says."""
    found = pd.DataFrame([row for path in args.checkpoints
                          for row in layers(path)])
    if found.empty:
        raise ValueError('No checkpoint has a weight on the sphere: give '
                         'those of runs --with lp_sgd or lp_sgd_dense.')
    out = options.out_folder(args.out or Path('work_dirs/hoyer'),
                             ['hoyer.*'], args.overwrite)
    table = found.groupby(['checkpoint', 'p']).hoyer.agg(
        ['size', 'mean', 'min', 'max']).rename(
            columns={'size': 'layers'}).sort_index(level='p').reset_index()
    table.to_csv(out / 'hoyer.csv', index=False, float_format='%.4f')
    draw(table).savefig(out / 'hoyer.png')
    print(table.to_string(index=False, float_format='{:.3g}'.format))


def layers(path: Path) -> list[dict]:
    """Of each weight on the sphere its p and Hoyer's sparsity."""
    optimizer = torch.load(path, 'cpu', weights_only=False)['optimizer']
    return [
        dict(checkpoint='/'.join(path.parts[-3:]), p=group['p'],
             hoyer=hoyer(optimizer['state'][i]['v'].abs()**(
                 1 / (group['p'] - 1))))
        for group in optimizer['param_groups'] if group.get('p')
        for i in group['params']]


def draw(table: pd.DataFrame) -> Figure:
    """The mean over the layers, and from the least to the largest."""
    figure = Figure((8, 3), layout='constrained')
    axes = figure.subplots()
    axes.fill_between(table.p, table['min'], table['max'], alpha=0.2, lw=0,
                      color='#0072B2', label='least and largest layer')
    axes.plot(table.p, table['mean'], 'o-', color='#0072B2',
              label='mean over the layers')
    axes.set(xlabel='p', ylabel="Hoyer's sparsity", ylim=(0, 1))
    axes.legend(frameon=False)
    return figure


if __name__ == '__main__':
    raise SystemExit(main())

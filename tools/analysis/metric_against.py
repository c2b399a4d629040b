"""Draws the last validation of a comparison's arms against what they logged.

    metric_against.py WORK_DIR --key sparsity/zeros

WORK_DIR is a folder that compare.py run has made. Arms that differ in a
number at the end of their names, as in lp_sgd_50 and lp_sgd_90, are joined
by a line. The baseline, and what logs no such number, is at 0. Bars are 95 %
intervals of the paired difference to the baseline over the seeds. Writes
WORK_DIR/against.png and against.md.
"""
import argparse
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from mmpsw.commands import options
from mmpsw.compare import comparison, plots, table
from mmpsw.compare.comparison import Comparison
from mmpsw.compare.runs import Run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='metric_against.py', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path)
    parser.add_argument('--key', required=True,
                        help='a number that training logs')
    parser.add_argument('--mean', action='store_true',
                        help='its mean over the run; otherwise its last value')
    options.add_out(parser, 'WORK_DIR')
    args = parser.parse_args(argv)
    return options.report_errors(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Writes the table and the picture."""
    out = options.out_folder(args.out or args.work_dir, ['against.*'],
                             args.overwrite)
    c = comparison.read([args.work_dir])
    rows = measured(c, args.key, args.mean)
    text = as_markdown(c, rows, args.key)
    (out / 'against.md').write_text(text + '\n', encoding='utf-8')
    plots.save(draw(c, rows, args.key), out / 'against.png')
    print(text)


def logged(run: Run, key: str, mean: bool) -> float:
    """The last value of what a run logged, or its mean; 0 for nothing."""
    values = [line[key] for line in run.training if key in line] or [0.]
    return statistics.fmean(values) if mean else values[-1]


def measured(c: Comparison, key: str, mean: bool) -> pd.DataFrame:
    """What compare's table has, and the column logged: its mean over seeds.

    Raises:
        ValueError: No run has logged ``key``.
    """
    rows = table.numbers(c)
    rows['logged'] = [statistics.fmean(
        logged(run, key, mean) for run in c.of_arm(arm).source)
        for arm in rows.arm]
    if not rows.logged.any():
        raise ValueError(f"no run of {', '.join(c.plans)} has logged '{key}'; "
                         'give a key of its vis_data/scalars.json')
    return rows


def as_markdown(c: Comparison, rows: pd.DataFrame, key: str) -> str:
    """A row for each arm; of fractions three digits, of percentages one."""
    digits = 3 if rows.final_mean.max() < 1.5 else 1
    lines = [f'| arm | {key} | final {c.metric} | - {c.baseline} |',
             '| --- | --- | --- | --- |']
    for row in rows.itertuples():
        difference = '' if row.arm == c.baseline else (
            f'{row.final_difference:+.{digits}f} '
            f'± {row.final_half_width:.{digits}f}')
        lines.append(f'| {row.arm} | {row.logged:.3f} | '
                     f'{row.final_mean:.{digits}f} ± '
                     f'{row.final_std:.{digits}f} | {difference} |')
    return '\n'.join(lines)


@matplotlib.rc_context(plots.STYLE)
def draw(c: Comparison, rows: pd.DataFrame, key: str) -> Figure:
    """Differences to the baseline, with their intervals."""
    figure = Figure(figsize=(6, 3.6), dpi=150, layout='constrained')
    axes = figure.subplots()
    axes.axhline(0, color='#1A1A1A', linestyle='--', linewidth=1.2,
                 label=c.baseline)
    others = rows[rows.arm != c.baseline]
    family = others.arm.map(lambda arm: re.sub(r'_\d+$', '', arm))
    for (name, arms), (colour, marker) in zip(
            others.groupby(family), plots.LOOKS * len(others)):
        arms = arms.sort_values('logged')
        axes.errorbar(arms.logged, arms.final_difference,
                      arms.final_half_width, color=colour, marker=marker,
                      markersize=4, capsize=3, linewidth=1.4, label=name)
    axes.set(xlabel=key, ylabel=f'last {c.metric} - {c.baseline}')
    figure.legend(loc='outside upper center', frameon=False, fontsize=8,
                  ncols=3)
    return figure


if __name__ == '__main__':
    sys.exit(main())

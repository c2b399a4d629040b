"""Makes the tables and pictures of configs/study from its CSV files.

    study.py [--data configs/study] [--out configs/study]

A CSV file a task holds a row for each validation: regime (constant, decay,
extend, cyclic), length and step (epochs, or passes over the data), rate, arm,
seed, value; tested.csv one for each test. It prints the tables in markdown,
and writes four pictures, and the README's.
"""
import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

# name, metric, stock rate, length, and that of the longer schedule
TASKS = {
    'sign_digits': ('hand signs', 'accuracy, %', 0.1, 15, 20),
    'bccd': ('blood cells', 'mAP, %', 0.02, 12, 16),
    'dsb2018': ('nuclei', 'mIoU, %', 0.1, 12, 16),
}
BLACK, BLUE, ORANGE = '#1A1A1A', '#0072B2', '#D55E00'
STYLE = {'axes.grid': True, 'axes.axisbelow': True, 'grid.color': '#E2E2E2',
         'axes.spines.top': False, 'axes.spines.right': False,
         'axes.titlesize': 10}
SWEPT = (0, 1)  # the seeds that were trained at every rate
BEST = (('constant', 'baseline'), ('constant', 'ema_50'),
        ('constant', 'psw'), ('constant', 'pswa'), ('decay', 'baseline'),
        ('decay', 'psw'))
REGIMES = dict(constant='constant rate', decay='stock decay')
WINDOWS = (10, 50, 200, 1000, 5000)
SHARES = (0, 0.1, 0.3, 1)


class Task:
    """The rows of one task."""

    def __init__(self, folder: Path, key: str) -> None:
        self.name, self.metric, self.rate, self.length, self.longer = (
            TASKS[key])
        self.rows = pd.read_csv(folder / f'{key}.csv')
        if self.rows.value.max() <= 1:
            self.rows.value *= 100

    def runs(self, regime: str, arm: str, length: int,
             rate: float | None = None) -> pd.DataFrame:
        """A row for each step, a column for each seed."""
        rows = self.rows
        rate = self.rate if rate is None else rate
        rows = rows[(rows.regime == regime) & (rows.arm == arm)
                    & (rows.length == length)
                    & ((rows.rate - rate).abs() < 1e-9)]
        return rows.pivot(index='step', columns='seed', values='value')

    def final(self, *args) -> pd.Series:
        """The last validation of each seed."""
        runs = self.runs(*args)
        return runs.iloc[-1].dropna() if len(runs) else pd.Series(dtype=float)


def compared(values: pd.Series, reference: pd.Series) -> str:
    """``95.0 (+1.2 ± 0.3)``: the mean, and the difference over the seeds of
    both, with its 95 % interval where they are three or more."""
    if values.empty or values is reference:
        return f'{values.mean():.1f}' if len(values) else '-'
    change = (values - reference).dropna()
    half = stats.t.ppf(0.975, len(change) - 1) * change.sem()
    interval = f' ± {half:.1f}' if len(change) > 2 else ''
    return f'{values.mean():.1f} ({change.mean():+.1f}{interval})'


def best_rate(task: Task, regime: str, arm: str, seeds: Sequence[int]
              ) -> float:
    """The rate with the best mean of the last validations of some seeds."""
    rows = task.rows
    rows = rows[(rows.regime == regime) & (rows.arm == arm)
                & (rows.length == task.length) & (rows.step == task.length)
                & rows.seed.isin(seeds)]
    return rows.groupby('rate').value.mean().idxmax()


def at_best_rate(task: Task, regime: str, arm: str) -> pd.Series:
    """Each seed at the rate that is best with the others of SWEPT."""
    rows = task.rows[(task.rows.regime == regime) & (task.rows.arm == arm)]
    values = {}
    for seed in sorted(rows.seed.unique()):
        rate = best_rate(task, regime, arm,
                         [other for other in SWEPT if other != seed])
        final = task.final(regime, arm, task.length, rate)
        if seed in final:
            values[seed] = final[seed]
    return pd.Series(values)


def tuned(tasks: Sequence[Task]) -> tuple[pd.DataFrame, Figure]:
    """Question 1: each arm at its own best rate."""
    table, figure = {}, Figure((10, 2.9), dpi=110, layout='constrained')
    for axes, task in zip(figure.subplots(1, len(tasks), sharey=True), tasks):
        arms = [at_best_rate(task, *arm) for arm in BEST]
        reference, lowest = arms[0], pd.concat(arms).median() - 12
        for place, ((regime, arm), values) in enumerate(zip(BEST, arms)):
            rate = best_rate(task, regime, arm, SWEPT)
            table.setdefault(f'{arm}, {REGIMES[regime]}', {})[task.name] = (
                f'{compared(values, reference)}, n = {len(values)}, {rate:g}')
            _dots(axes, values, place, f'{rate:g}', lowest)
        _name_rows(axes, list(table), task)
    return pd.DataFrame(table).T, figure


def tested(tasks: Sequence[Task], folder: Path, reference: tuple[str, str]
           ) -> pd.DataFrame:
    """Question 1 against one arm; also on images that chose no rate: the test
    splits of two tasks, by the last weights of seeds that chose none either.
    """
    columns = {task.name: {arm: at_best_rate(task, *arm) for arm in BEST}
               for task in tasks}
    rows = pd.read_csv(folder / 'tested.csv')
    for key in rows.task.unique():
        runs = rows[rows.task == key].pivot(
            index='seed', columns=['regime', 'arm'], values='value')
        columns[f'{TASKS[key][0]}, tested'] = {
            arm: runs[arm].dropna() for arm in BEST}
    return pd.DataFrame({
        name: {f'{arm}, {REGIMES[regime]}': compared(
            values, column[reference])
            for (regime, arm), values in column.items()}
        for name, column in columns.items()})


def windows(tasks: Sequence[Task]) -> tuple[pd.DataFrame, Figure]:
    """Question 2: EMAs of several windows, and psw."""
    table = {}
    panels = [(task, length) for task in tasks
              for length in (task.length, 4 * task.length)
              if len(task.runs('constant', 'ema_10', length))]
    figure = Figure((2 + 2.1 * len(panels), 5), dpi=110,
                    layout='constrained')
    grid = figure.subplots(2, len(panels), sharex=True, squeeze=False)
    for column, (task, length) in zip(grid.T, panels):
        for axes, of in zip(column, (lambda r: r.iloc[-1],
                                     lambda r: r.mean())):
            arms = {arm: of(task.runs('constant', arm, length).dropna(axis=1))
                    for arm in ('baseline', 'psw',
                                *(f'ema_{window}' for window in WINDOWS))}
            for arm, values in arms.items():
                key = f'{task.name}, {length}'
                cell = table.setdefault(arm, {})
                cell[key] = (f'{cell[key]} / ' if key in cell else '') + (
                    compared(values, arms['psw']))
            _window_lines(axes, {arm: values.mean()
                                 for arm, values in arms.items()})
        column[0].set_title(f'{task.name}, {length} epochs\n{task.metric}')
    for axes, label in zip(grid[:, 0], ('last validation',
                                        'mean over the run')):
        axes.set_ylabel(label)
    figure.supxlabel("window of the EMA in updates (mmengine's default: "
                     '5000)', fontsize=9)
    return pd.DataFrame(table).T, figure


def extended(tasks: Sequence[Task]) -> tuple[pd.DataFrame, Figure]:
    """Question 3: training on from a finished schedule."""
    table, figure = {}, Figure((10, 3.2), dpi=110, layout='constrained')
    for axes, task in zip(figure.subplots(1, len(tasks), sharey=True), tasks):
        more = task.longer - task.length
        planned = task.final('decay', 'baseline', task.longer)
        stock = task.final('decay', 'baseline', task.length)[planned.index]
        arms = {'the stock schedule, finished': stock}
        for share in (0.1, 0.3, 1):
            arms[f'+ a third at {share:g} of its rate, psw'] = task.final(
                'extend', 'psw', more, round(share * task.rate, 6))
        arms['+ a third, cyclic, the mean of its ends'] = task.final(
            'cyclic', 'swa', more)
        arms['a longer stock schedule, planned'] = planned
        runs = task.runs('constant', 'psw', 2 * task.length)
        arms['a constant rate for as long, psw'] = runs.loc[task.longer]
        for place, (arm, values) in enumerate(arms.items()):
            table.setdefault(arm, {})[task.name] = compared(values, stock)
            _dots(axes, values, place, '')
        axes.axvline(stock.mean(), color='#888888', linewidth=0.8)
        _name_rows(axes, list(arms), task)
    return pd.DataFrame(table).T, figure


def written_back(tasks: Sequence[Task]) -> tuple[pd.DataFrame, Figure]:
    """Question 4: how much of the mean is written back."""
    task, table = tasks[0], {}
    figure = Figure((8, 3.4), dpi=110, layout='constrained')
    for axes, regime in zip(figure.subplots(1, 2, sharey=True),
                            ('constant', 'decay')):
        for factor, color, arm, line in ((1, BLUE, 'pswa', '-'),
                                         (2, ORANGE, 'pswa', '-'),
                                         (2, ORANGE, 'pwalks_half', '--')):
            arms = {share: task.final(
                regime, {0: 'psw', 1: arm}.get(share, f'{arm}_{share}'),
                task.length, factor * task.rate) for share in SHARES}
            if arm != 'pswa' and arms[0.3].empty:
                continue
            name = f'{factor} x the rate'
            half = ', PWALKS of a half' if arm != 'pswa' else ''
            cells = table.setdefault(f'{name}, {REGIMES[regime]}{half}', {})
            cells['alone'] = compared(task.final(
                regime, 'baseline', task.length, factor * task.rate), arms[0])
            for share, values in arms.items():
                cells[f'a = {share:g}'] = compared(values, arms[0])
                axes.plot([SHARES.index(share)] * len(values), values, '.',
                          color=color, alpha=0.5)
            means = pd.Series([values.mean() for values in arms.values()])
            axes.plot(means.dropna(), line, color=color, linewidth=1.8)
            place, text = (2, half[2:]) if half else (0, name)
            axes.annotate(text, (place, means[place]), (4, -16), color=color,
                          textcoords='offset points', fontsize=9)
        axes.set_xticks(range(len(SHARES)), [f'{s:g}' for s in SHARES])
        axes.set_title(f'{task.name}, {REGIMES[regime]}')
    figure.axes[0].set_ylabel(task.metric)
    figure.supxlabel('the share a of the mean that is written back',
                     fontsize=9)
    return pd.DataFrame(table).T, figure


def hero(folder: Path, tasks: Sequence[Task]) -> Figure:
    """The README's picture: steady from the start, and at every rate."""
    figure = Figure((8.4, 3.1), dpi=150, layout='constrained')
    left, right = figure.subplots(1, 2)
    runs = pd.read_csv(folder / 'sign_digits_runs.csv')
    lines = (('constant', 'psw', 'constant rate, psw', BLUE),
             ('decay', 'baseline', 'stock decay', ORANGE),
             ('constant', 'baseline', 'constant rate', BLACK))
    for regime, arm, label, color in lines:
        rows = runs[(runs.comparison == f'sign_digits_{regime}')
                    & (runs.arm == arm) & runs.step.notna()]
        means = rows.groupby('step').value.mean()
        left.plot(means, color=color, linewidth=1.8)
        _name_line(left, label, color)
        task = tasks[1]
        swept = task.rows[(task.rows.regime == regime)
                          & (task.rows.arm == arm)
                          & (task.rows.step == task.length)
                          & task.rows.seed.isin(SWEPT)]
        means = swept.groupby('rate').value.mean()
        right.plot(means, 'o-', color=color, linewidth=1.8, markersize=4)
    left.set_title('Hand signs: accuracy, %, after each epoch')
    left.set_ylim(40)
    left.set_xlabel('epoch')
    right.set_xlabel('learning rate')
    right.set_title('Blood cells: final mAP, %, at five learning rates')
    right.set_xscale('log')
    rates = sorted(swept.rate.unique())
    right.set_xticks(rates, [f'{rate:g}' for rate in rates])
    right.minorticks_off()
    return figure


def _name_line(axes: Axes, label: str, color: str) -> None:
    """Below the others, in the order of the lines."""
    place = 0.06 + 0.09 * (2 - len(axes.texts))
    axes.text(0.97, place, label, color=color, ha='right', fontsize=9,
              transform=axes.transAxes)


def _dots(axes: Axes, values: pd.Series, place: int, label: str,
          lowest: float = 0) -> None:
    """Values below the lowest are written, not drawn."""
    color = (BLUE, BLACK)[place == 0]
    drawn = values[values >= lowest]
    axes.plot(drawn, [place] * len(drawn), 'o', color=color, alpha=0.35,
              markersize=4)
    axes.plot(max(values.mean(), lowest), place, '|', color=color,
              markersize=15, markeredgewidth=2.2)
    for value in values[values < lowest]:
        axes.annotate(f'{value:.0f}, mean {values.mean():.0f}',
                      (lowest, place), (6, 0), va='center', fontsize=8,
                      textcoords='offset points', color=color)
    axes.annotate(label, (1, place), (-2, 0), ha='right', va='center',
                  xycoords=('axes fraction', 'data'), fontsize=8,
                  textcoords='offset points', color='#666666')


def _name_rows(axes: Axes, names: Sequence[str], task: Task) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.2)
    axes.set_title(f'{task.name}, {task.metric}')


def _window_lines(axes: Axes, means: dict[str, float]) -> None:
    """The means of an EMA far below the others are written, not drawn."""
    values = [means[f'ema_{window}'] for window in WINDOWS]
    lowest = 2 * means['baseline'] - max(*values, means['psw'])
    axes.plot(WINDOWS, values, 'o-', color=ORANGE, markersize=4)
    for window, value in zip(WINDOWS, values):
        axes.annotate('EMA' if window == 50 else '' if value > lowest else
                      f'{value:.0f}', (window, max(value, lowest)), (0, 5),
                      textcoords='offset points', color=ORANGE, fontsize=8,
                      ha='center')
    for arm, color, dashes in (('psw', BLUE, '-'), ('baseline', BLACK, '--')):
        axes.axhline(means[arm], color=color, linestyle=dashes)
        axes.annotate(arm, (1, means[arm]), (0, 2), ha='right', color=color,
                      xycoords=('axes fraction', 'data'), fontsize=8,
                      textcoords='offset points')
    axes.set_ylim(bottom=lowest - 0.1 * (means['psw'] - lowest))
    axes.set_xscale('log')
    axes.set_xticks(WINDOWS, [str(window) for window in WINDOWS])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(MaxNLocator(5))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='study.py', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ('--data', '--out'):
        parser.add_argument(option, type=Path, default=Path('configs/study'))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        tasks = [Task(args.data, key) for key in TASKS]
        for name, question in (('tuned', tuned), ('windows', windows),
                               ('extended', extended),
                               ('written_back', written_back)):
            table, figure = question(tasks)
            print(f'{table.fillna("-").to_markdown()}\n')
            figure.savefig(args.out / f'{name}.png')
        for reference in (BEST[0], ('constant', 'psw'), ('decay', 'baseline')):
            table = tested(tasks, args.data, reference)
            print(f'{table.to_markdown()}\n')
        hero(args.data, tasks).savefig(args.out / 'hero.png')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())

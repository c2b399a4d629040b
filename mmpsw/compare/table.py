"""Arms in numbers, and as a table of text.

Of a run's validations m_1..m_E: *best*; *final*, m_E; *area*, the mean over
the points that all runs have (how good the model is whenever one stops); and
*drop*, the mean of max(0, m_{e-1} - m_e) (how volatile it is).
"""
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from tabulate import tabulate

from mmpsw.compare.comparison import Comparison

__all__ = ['KEYS', 'as_markdown', 'as_text', 'curve', 'explain', 'numbers',
           'shown', 'time_note', 'verdicts']

KEYS = ('best', 'final', 'area', 'drop')
_TEXT_WIDTH = 120


def numbers(c: Comparison, zoo: float | None = None) -> pd.DataFrame:
    """The rows of ``table.csv``, one for each arm.

    best, final, area and drop have the columns ``_mean``, ``_std`` (over the
    seeds), ``_difference`` (to the baseline), ``_half_width`` (of its 95 %
    interval, Student's t) and ``_n`` (pairs of equal seeds). What nothing is
    known of is NaN.

    Args:
        c: The runs.
        zoo: The value that the model zoo publishes for the baseline.
    """
    runs = c.runs.join(_by_run(c))
    match = {arm: _match(c, arm) for arm in c.arms}
    rows = []
    for arm in c.arms:
        of_arm = runs[runs.arm == arm]
        row = dict(arm=arm, seeds=len(of_arm), metric=c.metric, unit=c.unit,
                   better=c.better, **_over_seeds(c, runs, arm),
                   match_step=match[arm],
                   match_ratio=match[arm] / match[c.baseline],
                   zoo=zoo if arm == c.baseline else None)
        for name, key in (('time_per_iter', 'time'), ('memory_mb', 'memory')):
            row |= {f'{name}_mean': of_arm[key].mean(skipna=False),
                    f'{name}_std': of_arm[key].std(skipna=False),
                    f'{key}_ratio': _ratio(c, key, arm)}
        rows.append(row)
    return pd.DataFrame(rows).astype(
        {'match_step': 'Int64', 'zoo': float,
         **{f'{key}_n': 'Int64' for key in KEYS}})


def verdicts(table: pd.DataFrame, key: str) -> pd.Series:
    """1 better, -1 worse, 0 undecided: where the interval holds 0, or is NaN.

    NaN where there are no two pairs of runs, so that there is no interval.
    """
    difference = table[f'{key}_difference']
    good = np.where((table.better == 'higher') & (key != 'drop'), 1, -1)
    decided = difference.abs() > table[f'{key}_half_width']
    return (np.sign(difference) * good).where(decided, 0).where(
        table[f'{key}_n'].fillna(0).astype(int) > 1)


def curve(c: Comparison, arm: str) -> pd.DataFrame:
    """Mean and standard deviation (NaN for one run) of an arm, by step.

    At the steps that all of its runs have.
    """
    values = c.points[c.points.arm == arm].groupby('step').value
    found = pd.DataFrame(dict(mean=values.mean(skipna=False),
                              std=values.std(skipna=False)))
    return found[values.size() == len(c.of_arm(arm))]


def as_text(c: Comparison, table: pd.DataFrame) -> str:
    """An aligned table in ASCII.

    Where it would be wider than 120 columns it is two: the arms' own numbers,
    and those against the baseline.
    """
    own, against = shown(c, table)
    text = _tabulate([own, against], 'simple')
    if len(text.splitlines()[0]) <= _TEXT_WIDTH or against.empty:
        return text
    return (f'{_tabulate([own], "simple")}\n\nagainst {c.baseline}:\n\n'
            f'{_tabulate([against], "simple")}')


def as_markdown(c: Comparison, table: pd.DataFrame) -> str:
    """The same as one table in Markdown."""
    return _tabulate(shown(c, table), 'github')


def shown(c: Comparison,
          table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What of the numbers is shown, by arm: its own, and to the baseline.

    Without the columns that have nothing to say.
    """
    # Three for a fraction (COCO's mAP), two for a percentage.
    digits = 2 if c.points.value.abs().max() > 1 else 3
    several = (table.seeds > 1).any()
    own = pd.DataFrame(index=pd.Index(table.arm, name=None))
    against = own.copy()
    if several:
        own['seeds'] = table.seeds.astype(str).to_list()
    titles = KEYS[:3] + ('drop/epoch' if c.unit == 'epoch' else
                         'drop/validation', )
    for key, title in zip(KEYS, titles):
        own[title] = _cells(table[f'{key}_mean'], table[f'{key}_std'],
                            digits + (key == 'drop'))
    against[f'{c.unit}s to match'] = [
        '-' if pd.isna(step) else f'{step} ({ratio:.2f})'
        for step, ratio in zip(table.match_step, table.match_ratio)]
    if table.zoo.notna().any():
        own['model zoo'] = _cells(table.zoo, None, digits)
    if table.time_per_iter_mean.notna().any():
        own['s/iter'] = [_time(c.of_arm(arm).time) for arm in table.arm]
    if table.memory_mb_mean.notna().any():
        own['memory (MB)'] = _cells(table.memory_mb_mean, table.memory_mb_std,
                                    0)
    for key in KEYS[:3]:
        if several and table[f'{key}_difference'].notna().any():
            against[f'{key} - baseline'] = _cells(
                table[f'{key}_difference'], table[f'{key}_half_width'],
                digits, sign='+')
    for key in ('time', 'memory'):
        if table[f'{key}_ratio'].count() > 1:  # the baseline's is 1
            against[f'rel. {key}'] = _cells(table[f'{key}_ratio'], None, 2,
                                            end='x')
    return own, against


def explain(c: Comparison) -> list[str]:
    """A sentence on each kind of column, for those who see the table."""
    points = 'epochs' if c.unit == 'epoch' else 'validations'
    found = [
        f'{c.metric}: {c.better} is better. best: the best validation; final: '
        f'the last one; area: the mean over all {points}; drop: what is lost '
        'on average from one to the next.',
        f'{c.unit}s to match: the first {c.unit} at which an arm, in the mean '
        f'over its seeds, is as good as {c.baseline} ever is, and in '
        'parentheses that by the one at which the baseline itself is.',
    ]
    if c.runs.arm.duplicated().any():
        found.append(
            'a +- b: mean and standard deviation over the seeds. Differences: '
            f'arm - {c.baseline}, the mean over the seeds that both have, and '
            "half the width of its 95 % interval (Student's t).")
        if c.runs.time.notna().any():
            found.append('s/iter: the median over the runs, each of which is '
                         'a median over its iterations, and the least and '
                         'greatest.')
    return found


def time_note(c: Comparison) -> Iterator[str]:
    """Why the ratio of times is left out, where it is."""
    times = c.of_arm(c.baseline).time
    silent = [arm for arm in c.arms if arm != c.baseline
              and not c.of_arm(arm).time.isna().any()
              and np.isnan(_ratio(c, 'time', arm))]
    if _carried(c):
        yield ("rel. time is left out: the baseline's runs carried "
               f'{", ".join(_carried(c))} along.')
    elif silent and times.notna().all():
        yield (
            'rel. time is left out, as one run of the baseline does not say '
            'how much its time varies.' if len(times) == 1 else
            f'rel. time is left out for {", ".join(silent)}: the '
            f"baseline's own runs take {times.min():.3f} to "
            f'{times.max():.3f} s/iter, which differ by more than the arms '
            'do.')


def _by_run(c: Comparison) -> pd.DataFrame:
    """best, final, area and drop of each run."""
    steps = c.points.groupby('step').run.nunique()
    shared = steps.index[steps == len(c.runs)]

    def of_run(points: pd.DataFrame) -> pd.Series:
        values = points.value
        lost = -_sign(c) * np.diff(values)
        return pd.Series(dict(
            best=(values * _sign(c)).max() * _sign(c), final=values.iloc[-1],
            area=values[points.step.isin(shared)].mean(skipna=False),
            drop=np.maximum(0, lost).mean() if len(lost) else np.nan))

    return c.points.groupby('run')[['step', 'value']].apply(of_run)


def _over_seeds(c: Comparison, runs: pd.DataFrame, arm: str) -> dict:
    """Mean and spread of an arm, and its paired difference.

    Runs of equal seeds are pairs, the first with the first; those whose seed
    is not known are paired with none.
    """
    keyed = runs[runs.seed.notna()].set_index(['seed', 'repeat'])
    ours, theirs = (keyed.loc[keyed.arm == name, [*KEYS]]
                    for name in (arm, c.baseline))
    pairs = ours.index.intersection(theirs.index)
    n = len(pairs) if arm != c.baseline else 0
    change = (ours - theirs).loc[pairs[:n]]
    half = stats.t.ppf(0.975, n - 1) * change.sem(skipna=False)
    row = {}
    for key in KEYS:
        values = runs[key][runs.arm == arm]
        row |= {f'{key}_mean': values.mean(skipna=False),
                f'{key}_std': values.std(skipna=False),
                f'{key}_difference': change[key].mean(skipna=False),
                f'{key}_half_width': half[key], f'{key}_n': n or None}
    return row


def _sign(c: Comparison) -> int:
    return 1 if c.better == 'higher' else -1


def _match(c: Comparison, arm: str) -> float:
    """The first step at which an arm is as good as the baseline ever is."""
    ours, theirs = (curve(c, name)['mean'] * _sign(c)
                    for name in (arm, c.baseline))
    reached = ours >= theirs.max()
    return reached.idxmax() if reached.any() else np.nan


def _ratio(c: Comparison, key: str, arm: str) -> float:
    """An arm's median cost by the baseline's; NaN where one was not logged.

    And where the baseline's own times differ by more than the arms do.
    """
    ours, theirs = (c.of_arm(name)[key] for name in (arm, c.baseline))
    if key == 'time' and _carried(c):
        return np.nan
    if key == 'time' and arm != c.baseline:
        change = abs(ours.median() - theirs.median())
        if len(theirs) == 1 or change < theirs.max() - theirs.min():
            return np.nan
    return ours.median(skipna=False) / theirs.median(skipna=False)


def _carried(c: Comparison) -> list[str]:
    """The arms whose time is in that of the baseline's runs."""
    return [arm for plan in c.plans.values()
            for arm in plan.get('passengers', [])]


def _cells(means: pd.Series, spreads: pd.Series | None, digits: int,
           sign: str = '', end: str = '') -> list[str]:
    spreads = means * np.nan if spreads is None else spreads
    return ['-' if pd.isna(mean) else f'{mean:{sign}.{digits}f}{end}' + (
        '' if pd.isna(spread) else f' +- {spread:.{digits}f}')
            for mean, spread in zip(means, spreads)]


def _time(times: pd.Series) -> str:
    if times.isna().any():
        return '-'
    spread = f' ({times.min():.3f} to {times.max():.3f})'
    return f'{times.median():.3f}{spread if len(times) > 1 else ""}'


def _tabulate(frames: Sequence[pd.DataFrame], style: str) -> str:
    frame = pd.concat(frames, axis=1)
    text = tabulate(frame, ['arm', *frame], style, disable_numparse=True,
                    colalign=['left', *['right'] * len(frame.columns)])
    return '\n'.join(line.rstrip() for line in text.splitlines())

"""The one long table under every report, its statistics, and both as text.

A row is a number that a run logged::

    comparison  arm   run  seed  unit   step  key       better  value
    lr_0.1      pswa  3    0     epoch  1     mIoU      higher  70.4
    lr_0.1      pswa  3    0     epoch        time      lower   0.21

Without a step are its costs, ``time`` (s per iteration) and ``memory`` (MB);
step 0 is a validation before the training. Of a run's other validations
m_1..m_E at the steps t_1..t_E: *best*; *final*, m_E; *area*, their mean, in
which each counts for the steps since the one before it (how good the model is
whenever one stops), over the steps that all runs of a comparison have; and
*drop*, the mean of max(0, m_{e-1} - m_e) (how volatile it is).
"""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from tabulate import tabulate

from mmpsw.compare.comparison import BASELINE, Comparison

__all__ = ['FILE', 'KEYS', 'as_markdown', 'as_text', 'baseline_of', 'curve',
           'explain', 'finding', 'in_points', 'load', 'long', 'measures',
           'misses', 'shown', 'statistics']

FILE = 'points.csv'
KEYS = {'final': 'final value', 'best': 'best value',
        'area': 'mean over the training', 'drop': 'drop per validation'}
_COLUMNS = ['comparison', 'arm', 'run', 'seed', 'unit', 'step', 'key',
            'better', 'value']
_TYPES = dict(seed='Int64', step='Int64')
_TEXT_WIDTH = 120


def long(c: Comparison, name: str = '') -> pd.DataFrame:
    """The table of runs that were read; ``name`` is the comparison's."""
    rows = [dict(arm=p.arm, run=p.run, seed=p.seed, step=p.step, key=c.metric,
                 better=c.better, value=p.value)
            for p in c.points.itertuples()]
    for number, run in c.runs.iterrows():
        own = dict(arm=run.arm, run=number, seed=run.seed)
        if not np.isnan(start := run.get('start', np.nan)):
            rows.append(dict(own, step=0, key=c.metric, better=c.better,
                             value=start))
        rows += [dict(own, step=pd.NA, key=key, better='lower',
                      value=run[key]) for key in ('time', 'memory')
                 if not np.isnan(run[key])]
    table = pd.DataFrame(rows).assign(comparison=name, unit=c.unit)
    return table[_COLUMNS].astype(_TYPES).sort_values(
        ['run', 'step'], kind='stable', ignore_index=True)


def load(paths: Sequence[str | Path]) -> pd.DataFrame:
    """The table of earlier reports, from their folders or files.

    A comparison's name is its folder's, or what a column of that name says,
    so that a file may hold several.

    Raises:
        ValueError: A file is missing, is none of these, or two comparisons
            have one name.
    """
    tables: dict[str, pd.DataFrame] = {}
    for path in map(Path, paths):
        file = path / FILE if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"'{file}' does not exist; give the {FILE} that "
                             'compare.py report has written, or its folder')
        folder = file.resolve().parent
        if folder.name == 'report':  # of a grid, in its folder
            folder = folder.parent
        try:
            table = pd.read_csv(file, converters=dict(arm=str))
            if 'comparison' not in table:
                table = table.assign(comparison=folder.name)
            table = table[_COLUMNS].astype(_TYPES)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"'{file}' is no table of a comparison ({error}); give the "
                f'{FILE} that compare.py report has written') from error
        for name, rows in table.groupby('comparison', sort=False):
            if name in tables:
                raise ValueError(f"two comparisons are called '{name}', "
                                 'after their folders; rename one')
            tables[name] = rows
    return pd.concat(tables.values(), ignore_index=True)


def baseline_of(table: pd.DataFrame, name: str | None = None) -> str:
    """The arm that others are compared with: the one of that name.

    By default the one called 'baseline', else the first.
    """
    arms = list(table.arm.unique())
    if name and name not in arms:
        raise ValueError(f"--baseline '{name}' is not an arm; give one of "
                         f'{", ".join(arms)}')
    return name or (BASELINE if BASELINE in arms else arms[0])


def measures(table: pd.DataFrame) -> pd.DataFrame:
    """best, final, area, drop, time and memory of each run, as ``key``."""
    rows = []
    for _, points in table[table.step > 0].groupby('comparison', sort=False):
        runs_at = points.groupby('step').run.nunique()
        shared = runs_at.index[runs_at == points.run.nunique()]
        for _, run in points.groupby('run', sort=False):
            first = run.iloc[0]
            sign = 1 if first.better == 'higher' else -1
            values = run.value.to_numpy() * sign
            inside = run.step.isin(shared).to_numpy()
            area = np.average(values[inside], weights=np.diff(
                run.step[inside].to_numpy(float), prepend=0.)
                ) if inside.any() else np.nan
            lost = np.maximum(0, -np.diff(values))
            rows += [
                first.to_dict() | dict(key=key, value=value, better=better)
                for key, value, better in (
                    ('final', sign * values[-1], first.better),
                    ('best', sign * run.value.mul(sign).max(), first.better),
                    ('area', sign * area, first.better),
                    ('drop', lost.mean() if len(lost) else np.nan, 'lower'))]
    costs = table[table.step.isna()]
    return pd.concat([pd.DataFrame(rows).astype(_TYPES), costs],
                     ignore_index=True).drop(columns='step')


def statistics(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Each measure of each arm over its runs, and against the baseline.

    Runs of equal seeds are pairs, the first with the first; those whose seed
    is not known are paired with none.

    Returns:
        Rows by comparison, arm and key: better, runs, mean, std; difference,
        the mean over the pairs (of the means, where there is no pair);
        half_width of its 95 % interval (Student's t) and pairs; verdict: 1
        better, -1 worse, 0 undecided, where the interval holds 0 or is NaN,
        and NaN itself where fewer than two pairs make no interval.
    """
    by = ['comparison', 'arm', 'key']
    found = measures(table)
    found['repeat'] = found.groupby([*by, 'seed']).cumcount()
    known = found[found.seed.notna()]
    pairs = known.merge(known[known.arm == baseline], on=[
        'comparison', 'key', 'seed', 'repeat'], suffixes=('', '_base'))
    pairs = pairs[pairs.arm != baseline].set_index(by)
    own = found.groupby(by, sort=False)
    change = (pairs.value - pairs.value_base).groupby(by)
    numbers = pd.DataFrame(dict(
        better=own.better.first(), runs=own.size(),
        mean=own.value.agg(_mean), std=own.value.agg(_std))).join(
            pd.DataFrame(dict(
                pairs=change.size(), difference=change.agg(_mean),
                half_width=change.agg(lambda values: stats.t.ppf(
                    .975, len(values) - 1) * values.sem(skipna=False))))
    ).reset_index().fillna(dict(pairs=0))
    base = numbers[numbers.arm == baseline].set_index(['comparison', 'key'])
    unpaired = (numbers.pairs == 0) & (numbers.arm != baseline)
    numbers.loc[unpaired, 'difference'] = numbers['mean'] - [
        base['mean'].get(key, np.nan)
        for key in zip(numbers.comparison, numbers.key)]
    sign = np.sign(numbers.difference) * np.where(
        numbers.better == 'higher', 1, -1)
    decided = numbers.difference.abs() > numbers.half_width
    numbers['verdict'] = sign.where(decided, 0.).where(numbers.pairs > 1)
    return numbers


def curve(table: pd.DataFrame, arm: str, shared: bool = True) -> pd.DataFrame:
    """Mean and standard deviation (NaN for one run) of an arm, by step.

    At the steps that all of its runs have, unless they need not be shared.
    """
    points = table[(table.arm == arm) & table.step.notna()]
    values = points.groupby('step').value
    found = pd.DataFrame(dict(mean=values.mean(skipna=False),
                              std=values.std(skipna=False)))
    return found[values.size() == points.run.nunique()] if shared else found


def in_points(numbers: pd.DataFrame) -> int:
    """100 where a metric is a share of one, whose hundredths are points."""
    own = numbers[numbers.key == 'best']
    return 100 if own['mean'].max() <= 1 and own.better.iloc[
        0] == 'higher' else 1


def finding(numbers: pd.DataFrame, baseline: str) -> str:
    """Sentences on what one comparison says, at the end and on the whole."""
    better = numbers.better[numbers.key == 'final'].iloc[0]
    found = [_finding(numbers[numbers.key == key], baseline, when,
                      in_points(numbers)) for key, when in
             (('final', 'At the end'), ('area', 'Over the training'))]
    text = ' '.join(filter(None, found))
    if (numbers.pairs < 2)[numbers.arm != baseline].all():
        text += ' With one seed, any of it may be chance.'
    return text + (' Lower is better.' if better == 'lower' else '')


def _finding(rows: pd.DataFrame, baseline: str, when: str,
             scale: int) -> str:
    base = 'the baseline' if baseline == BASELINE else baseline
    rows = rows[rows.arm != baseline]
    lost = list(rows.arm[rows.difference.isna()])
    rows = rows[rows.difference.notna()]
    if rows.empty:
        return ''
    largest = rows.difference.abs().max() * scale
    digits = 1 + max(0, int(np.ceil(-np.log10(largest or 1))))
    unit = ' points' if rows.better.iloc[0] == 'higher' else ''
    parts: list[str] = []
    side = ''
    for row in rows[rows.verdict != 0].itertuples():
        if not row.difference:
            parts.append(f'{row.arm} is level with {base}')
            continue
        before, side = side, 'above' if row.difference > 0 else 'below'
        half = f' +- {row.half_width * scale:.{digits}f}' if (
            row.pairs > 1) else ' (one seed)' if (rows.pairs > 1).any() else ''
        amount = f'{abs(row.difference) * scale:.{digits}f}{half}'
        parts.append(
            f'{row.arm} {amount}{f" {side}" if side != before else ""}'
            if parts else
            f'{row.arm} is {amount}{unit} {side} {base}')
    undecided = list(rows.arm[rows.verdict == 0])
    if undecided:
        listed = ' and '.join(filter(None, [', '.join(undecided[:-1]),
                                            undecided[-1]]))
        parts.append(f'{listed} {"are" if undecided[1:] else "is"} undecided'
                     + ('' if parts else f' against {base}'))
    parts += [f'{arm} has a run without a number' for arm in lost]
    return f'{when}, {"; ".join(parts)}.'


def misses(numbers: pd.DataFrame) -> str:
    """How many of the intervals err by chance; '' for a few."""
    count = numbers.half_width[numbers.key.isin(KEYS)].notna().sum()
    return '' if count < 10 else (
        f'{count} intervals at 95 %: about {count / 20:.1f} of them miss the '
        'true difference by chance alone.')


def as_text(frame: pd.DataFrame) -> str:
    """What :func:`shown` returns as an aligned table in ASCII.

    Where it would be wider than 120 columns it is two: the arms' own numbers,
    and those against the baseline.
    """
    text = _tabulate(frame, 'simple')
    if len(text.splitlines()[0]) <= _TEXT_WIDTH:
        return text
    against = [' - ' in title or 'to match' in title for title in frame]
    return '\n\n'.join(_tabulate(frame.loc[:, columns], 'simple') for columns
                       in (np.invert(against), against))


def as_markdown(frame: pd.DataFrame) -> str:
    """The same as one table in Markdown."""
    return _tabulate(frame, 'github')


def shown(numbers: pd.DataFrame, table: pd.DataFrame, baseline: str,
          zoo: float | None = None) -> pd.DataFrame:
    """What of one comparison's numbers is shown, as text, by arm.

    Without the columns that have nothing to say.

    Args:
        numbers: Its :func:`statistics`.
        table: Its long table.
        baseline: The arm that the others are compared with.
        zoo: The value that the model zoo publishes for it.
    """
    # Three for a fraction (COCO's mAP), two for a percentage.
    digits = 2 if table.value[table.step > 0].abs().max() > 1 else 3
    by_key = {key: rows.set_index('arm') for key, rows
              in numbers.groupby('key', sort=False)}
    frame = pd.DataFrame(index=pd.Index(table.arm.unique()))
    if (by_key['final'].runs > 1).any():
        frame['seeds'] = by_key['final'].runs.astype(str)
    for key in KEYS:
        rows = by_key[key]
        if key == 'drop':
            frame['drop/validation'] = _cells(rows['mean'], rows['std'],
                                              digits + 1)
            continue
        frame[key] = _cells(rows['mean'], rows['std'], digits)
        if rows.difference.notna().any():
            frame[f'{key} - {baseline}'] = _cells(
                rows.difference, rows.half_width, digits, '+')
        if key == 'final' and zoo is not None:
            frame['arm - zoo'] = _cells(rows['mean'] - zoo, None, digits, '+')
    unit, matches = table.unit.iloc[0], _matches(table, baseline)
    frame[f'{unit}s to match'] = [
        '-' if pd.isna(step) else f'{step} ({step / matches[baseline]:.2f})'
        for step in matches]
    for key, title, places in (('time', 's/iter', 3),
                               ('memory', 'memory (MB)', 0)):
        costs = table[table.key == key].groupby('arm').value
        if len(costs):
            frame[title] = costs.agg(_range, places)
    return frame.fillna('-')


def explain(numbers: pd.DataFrame, table: pd.DataFrame,
            baseline: str) -> list[str]:
    """A sentence on each kind of column, for those who see the table."""
    first = table[table.step.notna()].iloc[0]
    found = [
        f'{first.key}: {first.better} is better. final: the last validation; '
        f'best: the best one; area: the mean over all validations, each '
        f'counted for the {first.unit}s since the one before; drop: what is '
        'lost on average from one validation to the next.',
        f'{first.unit}s to match: the first {first.unit} at which an arm, in '
        f'the mean over its seeds, is as good as {baseline} ever is, and in '
        'parentheses that by the one at which that is reached by '
        f'{baseline} itself.',
    ]
    if (numbers.pairs > 1).any():
        found.append(
            'a +- b: mean and standard deviation over the seeds. Differences: '
            f'arm - {baseline}, the mean over the seeds that both have, and '
            "half the width of its 95 % interval (Student's t). "
            + misses(numbers[numbers.key != 'drop']))
    if (table.key == 'time').any():
        found.append('s/iter: of each run the median over its iterations; of '
                     'several runs their median, and the least and greatest.')
    return [line.strip() for line in found]


def _mean(values: pd.Series) -> float:
    return values.mean(skipna=False)


def _std(values: pd.Series) -> float:
    return values.std(skipna=False)


def _matches(table: pd.DataFrame, baseline: str) -> pd.Series:
    """The first step at which an arm is as good as the baseline ever is."""
    table = table[table.step > 0]
    sign = 1 if (table.better == 'higher').any() else -1
    best = (curve(table, baseline)['mean'] * sign).max()
    found = {}
    for arm in table.arm.unique():
        reached = curve(table, arm)['mean'] * sign >= best
        found[arm] = reached.idxmax() if reached.any() else pd.NA
    return pd.Series(found, dtype=object)


def _cells(means: pd.Series, spreads: pd.Series | None, digits: int,
           sign: str = '') -> pd.Series:
    spreads = means * np.nan if spreads is None else spreads
    return pd.Series(['-' if pd.isna(mean) else f'{mean:{sign}.{digits}f}' + (
        '' if pd.isna(spread) else f' +- {spread:.{digits}f}')
            for mean, spread in zip(means, spreads)], means.index)


def _range(values: pd.Series, digits: int) -> str:
    spread = f' ({values.min():.{digits}f} to {values.max():.{digits}f})'
    return f'{values.median():.{digits}f}' + (
        spread if len(values) > 1 and digits else '')


def _tabulate(frame: pd.DataFrame, style: str) -> str:
    text = tabulate(frame, ['arm', *frame], style, disable_numparse=True,
                    colalign=['left', *['right'] * len(frame.columns)])
    return '\n'.join(line.rstrip() for line in text.splitlines())

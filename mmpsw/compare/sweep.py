"""One setting at several values: the metric of every arm against it."""
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mmpsw.compare import comparison
from mmpsw.compare.comparison import Comparison

__all__ = ['read', 'robustness']


def read(paths: Sequence[str | Path], key: str, metric: str | None = None,
         rule: str | None = None) -> tuple[pd.DataFrame, Comparison]:
    """Read comparisons that differ in one setting.

    Args:
        paths: Folders that ``compare.py run`` has made, one for each value;
            ``NAME=DIR`` calls its arms NAME/ARM.
        key: The setting's place in the config, with dots:
            ``optim_wrapper.optimizer.lr``.
        metric, rule: See :func:`mmpsw.compare.comparison.read`.

    Returns:
        A row for each run: arm, seed, setting, and value, the metric of its
        last validation; and the first of the comparisons.

    Raises:
        ValueError: A run's config has no such number, or two folders have
            the same arm with the same one.
    """
    found = [comparison.read([path], metric, rule) for path in paths]
    rows = []
    for path, c in zip(paths, found):
        last = c.points.loc[c.points.groupby('run').step.idxmax()]
        for row in last.itertuples():
            setting = c.runs.source[row.run].config
            for part in key.split('.'):
                setting = getattr(setting, 'get', {}.get)(part)
            if not isinstance(setting, (int, float)):
                raise ValueError(
                    f"'{path}' has no number at --key {key}; give the key of "
                    'a number that these runs differ in')
            rows.append(dict(folder=str(path), arm=row.arm, seed=row.seed,
                             setting=setting, value=row.value))
    runs = pd.DataFrame(rows)
    for (arm, setting), same in runs.groupby(['arm', 'setting']).folder:
        one, *others = same.unique()
        if others:
            raise ValueError(
                f"'{one}' and '{others[0]}' both have the arm {arm} with "
                f'{key}={setting:g}; give one of them, or names: NAME=DIR')
    return runs.drop(columns='folder').sort_values('setting'), found[0]


def robustness(runs: pd.DataFrame, within: float,
               better: str = 'higher') -> pd.DataFrame:
    """How wide the range is in which an arm is near its best.

    Args:
        runs: See :func:`read`.
        within: How far below the arm's best mean still is near, in units of
            the metric.
        better: Which values are better, 'higher' or 'lower'.

    Returns:
        A row for each arm: the mean over the seeds at each setting, then
        best, the best of these means, and lowest and highest, the settings
        around it without a gap whose means are near.
    """
    means = runs.pivot_table('value', 'arm', 'setting', sort=False)
    means = means[sorted(means)]
    sign = 1 if better == 'higher' else -1
    near = {}
    for arm, row in (sign * means).iterrows():
        best = first = last = row.argmax()
        while first > 0 and row.iloc[first - 1] >= row.max() - within:
            first -= 1
        while last + 1 < len(row) and row.iloc[last + 1] >= (
                row.max() - within):
            last += 1
        near[arm] = dict(best=sign * row.iloc[best],
                         lowest=row.index[first], highest=row.index[last])
    return means.join(pd.DataFrame(near).T)

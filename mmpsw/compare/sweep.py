"""One setting at several values: the metric of every arm against it."""
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mmpsw.compare import comparison, table

__all__ = ['read', 'robustness']


def read(paths: Sequence[str | Path], key: str, metric: str | None = None,
         rule: str | None = None) -> pd.DataFrame:
    """Read comparisons that differ in one setting.

    Args:
        paths: Folders that ``compare.py run`` has made, one for each value;
            ``NAME=DIR`` calls its arms NAME/ARM.
        key: The setting's place in the config, with dots:
            ``optim_wrapper.optimizer.lr``.
        metric, rule: See :func:`mmpsw.compare.comparison.read`.

    Returns:
        A :func:`mmpsw.compare.table.long` of the runs' last validations,
        whose steps are the setting, ascending.

    Raises:
        ValueError: A run's config has no such number, or two folders have
            the same arm with the same one.
    """
    found = []
    for path in map(str, paths):
        c = comparison.read([path], metric, rule)
        last = table.measures(table.long(c, path))
        last = last[last.key == 'final'].assign(key=c.metric, unit=key)
        found.append(last.assign(step=[
            _setting(c.runs.source[run].config, key, path)
            for run in last.run]))
    runs = pd.concat(found, ignore_index=True)
    for (arm, setting), same in runs.groupby(['arm', 'step']).comparison:
        one, *others = same.unique()
        if others:
            raise ValueError(
                f"'{one}' and '{others[0]}' both have the arm {arm} with "
                f'{key}={setting:g}; give one of them, or names: NAME=DIR')
    return runs.sort_values('step', kind='stable', ignore_index=True)


def robustness(runs: pd.DataFrame, within: float) -> pd.DataFrame:
    """How wide the range is in which an arm is near its best.

    Args:
        runs: See :func:`read`.
        within: How far below the arm's best mean still is near, in units of
            the metric.

    Returns:
        A row for each arm: the mean over the seeds at each setting, then
        best, the best of these means, and lowest and highest, the settings
        around it without a gap whose means are near.
    """
    means = runs.pivot_table('value', 'arm', 'step', sort=False)
    means = means[sorted(means)]
    sign = 1 if (runs.better == 'higher').all() else -1
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


def _setting(config, key: str, path: str) -> float:
    for part in key.split('.'):
        config = getattr(config, 'get', {}.get)(part)
    if not isinstance(config, (int, float)):
        raise ValueError(f"'{path}' has no number at --key {key}; give the "
                         'key of a number that these runs differ in')
    return config

"""One setting at several values: the metric of every arm against it."""
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mmpsw.compare import comparison, table

__all__ = ['read', 'robustness']


def read(paths: Sequence[str | Path], key: str, metric: str | None = None,
         rule: str | None = None) -> tuple[pd.DataFrame, str, str]:
    """Read comparisons that differ in one setting.

    Args:
        paths: Folders that ``compare.py run`` has made, one for each value;
            ``NAME=DIR`` calls its arms NAME/ARM.
        key: The setting's place in the config, with dots:
            ``optim_wrapper.optimizer.lr``.
        metric, rule: See :func:`mmpsw.compare.comparison.read`.

    Returns:
        A row for each run: arm, seed, setting, and value, the metric of its
        last validation; which values are better, and the metric's name.

    Raises:
        ValueError: A run's config has no such number, or two folders have
            the same arm with the same one.
    """
    read = [(str(path), comparison.read([path], metric, rule))
            for path in paths]
    settings = {(path, number): _setting(run.config, key, path)
                for path, c in read
                for number, run in c.runs.source.items()}
    runs = table.measures(pd.concat(table.long(c, path) for path, c in read))
    runs = runs[runs.key == 'final']
    runs = runs.assign(setting=[
        settings[place] for place in zip(runs.comparison, runs.run)])
    for (arm, setting), same in runs.groupby(['arm', 'setting']).comparison:
        one, *others = same.unique()
        if others:
            raise ValueError(
                f"'{one}' and '{others[0]}' both have the arm {arm} with "
                f'{key}={setting:g}; give one of them, or names: NAME=DIR')
    first = read[0][1]
    return (runs.sort_values('setting', kind='stable')[
        ['arm', 'seed', 'setting', 'value']], first.better, first.metric)


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


def _setting(config, key: str, path: str) -> float:
    for part in key.split('.'):
        config = getattr(config, 'get', {}.get)(part)
    if not isinstance(config, (int, float)):
        raise ValueError(f"'{path}' has no number at --key {key}; give the "
                         'key of a number that these runs differ in')
    return config

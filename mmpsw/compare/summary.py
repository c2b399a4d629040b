"""Several comparisons in one table and one picture.

Each is the ``points.csv`` that a report has written; its folder's name is its
name. So a README's numbers can be made again without training anything.
"""
from collections.abc import Sequence

import pandas as pd

from mmpsw.compare.table import KEYS, in_points

__all__ = ['as_markdown', 'gains', 'tally']


def as_markdown(numbers: pd.DataFrame, table: pd.DataFrame, key: str) -> str:
    """A row for each arm and a column for each comparison.

    A cell is the mean over seeds, and the mean paired difference to the
    baseline with its 95 % interval; bold where the interval is without 0.

    Args:
        numbers: The :func:`mmpsw.compare.table.statistics` of all.
        table: Their long table, for the metrics' names.
        key: One of ``KEYS``.
    """
    columns = {}
    for name, rows in numbers.groupby('comparison', sort=False):
        metric = table.key[(table.comparison == name) & (table.step > 0)]
        digits = (3 if in_points(rows) > 1 or rows['mean'][
            rows.key == 'best'].max() <= 1 else 1) + (key == 'drop')
        columns[f'{name}, {metric.iloc[0]}'] = pd.Series({
            row['arm']: _cell(row, digits)
            for _, row in rows[rows.key == key].iterrows()})
    return _markdown(pd.DataFrame(columns).reindex(
        numbers.arm.unique()).fillna('-'))


def tally(numbers: pd.DataFrame, keys: Sequence[str]) -> str:
    """In how many comparisons an arm is better, undecided and worse.

    It is undecided where the 95 % interval of the difference holds 0, or is
    not a number.
    """
    counts = pd.DataFrame({
        KEYS[key]: numbers[numbers.key == key].groupby(
            'arm', sort=False).verdict.agg(lambda found: ' / '.join(
                str((found == verdict).sum()) for verdict in (1, 0, -1)))
        for key in keys})
    return _markdown(counts[(counts != '0 / 0 / 0').any(axis=1)])


def gains(numbers: pd.DataFrame, keys: Sequence[str]) -> str:
    """By how much an arm is better than the baseline, in the mean.

    In points: hundredths, where a metric is a share of one. An arm that is
    not in all the comparisons has no mean.
    """
    scales = {name: in_points(rows)
              for name, rows in numbers.groupby('comparison')}
    sign = numbers.better.map({'higher': 1, 'lower': -1})
    found = numbers.assign(
        gain=numbers.difference * sign * numbers.comparison.map(scales))
    cells = pd.DataFrame({
        KEYS[key]: found[found.key == key].groupby('arm', sort=False).gain.agg(
            lambda values: f'{values.mean():+.2f}'
            if values.count() == len(scales) else '-') for key in keys})
    return _markdown(cells[(cells != '-').any(axis=1)])


def _cell(row: pd.Series, digits: int) -> str:
    mean, difference, half = (
        '' if pd.isna(row[name]) else f'{row[name]:{sign}.{digits}f}'
        for name, sign in (('mean', ''), ('difference', '+'),
                           ('half_width', '')))
    change = f'{difference} ± {half}' if half else difference
    bold = '**' if row.verdict in (1, -1) else ''
    return (mean or '-') + (f' ({bold}{change}{bold})' if change else '')


def _markdown(cells: pd.DataFrame) -> str:
    head = ['arm', *cells]
    lines = [head, ['---'] * len(head), *cells.reset_index().to_numpy()]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)

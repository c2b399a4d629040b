"""Several comparisons in one table and one picture.

Each is the ``table.csv`` that a report has written; its folder's name is its
name. So a README's numbers can be made again without training anything.
"""
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mmpsw.compare.table import verdicts

__all__ = ['KEYS', 'as_markdown', 'gains', 'read', 'tally']

KEYS = {
    'final': 'final value',
    'best': 'best value',
    'area': 'mean over the training',
    'drop': 'drop per validation',
}


def read(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Read ``table.csv`` files, or the folders that hold them.

    Returns:
        Their rows, with the column ``comparison``, which names each.

    Raises:
        ValueError: A file is missing, is none of these, or two comparisons
            have one name.
    """
    tables: dict[str, pd.DataFrame] = {}
    for path in map(Path, paths):
        file = path / 'table.csv' if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"'{file}' does not exist; give the table.csv "
                             'that compare.py report has written, or its '
                             'folder')
        folder = file.resolve().parent
        if folder.name == 'report':  # of a grid, in its folder
            folder = folder.parent
        name = folder.name
        if name in tables:
            raise ValueError(f"two comparisons are called '{name}', after "
                             'their folders; rename one')
        table = pd.read_csv(file, converters=dict(arm=str))
        missing = {'arm', 'metric', 'better',
                   *(f'{key}_n' for key in KEYS)} - {*table}
        if missing:
            raise ValueError(f"'{file}' is no table of a comparison, because "
                             f'it has no {min(missing)}; give the table.csv '
                             'that compare.py report has written')
        tables[name] = table.assign(comparison=name)
    return pd.concat(tables.values(), ignore_index=True)


def as_markdown(table: pd.DataFrame, key: str) -> str:
    """A row for each arm and a column for each comparison.

    A cell is the mean over seeds, and the mean paired difference to the
    baseline with its 95 % interval; bold where the interval is without 0.
    """
    digits = {name: (3 if rows.best_mean.max() <= 1 else 1) + (key == 'drop')
              for name, rows in table.groupby('comparison')}
    columns = table.comparison + ', ' + table.metric
    cells = pd.Series(
        [_cell(row, key, verdict, digits[row.comparison]) for (_, row), verdict
         in zip(table.iterrows(), verdicts(table, key))],
        index=[table.arm, columns]).unstack(fill_value='-')
    return _markdown(cells.loc[table.arm.unique(), columns.unique()])


def tally(table: pd.DataFrame, keys: Sequence[str]) -> str:
    """In how many comparisons an arm is better, undecided and worse.

    It is undecided where the 95 % interval of the difference holds 0, or is
    not a number.
    """
    counts = pd.DataFrame({
        KEYS[key]: verdicts(table, key).groupby(table.arm, sort=False).apply(
            lambda found: ' / '.join(str((found == verdict).sum())
                                     for verdict in (1, 0, -1)))
        for key in keys})
    return _markdown(counts[(counts != '0 / 0 / 0').any(axis=1)])


def gains(table: pd.DataFrame, keys: Sequence[str]) -> str:
    """By how much an arm is better than the baseline, in the mean.

    In points: hundredths, where a metric is a share of one. An arm that is
    not in all the comparisons has no mean.
    """
    best = table.groupby('comparison').best_mean.transform('max')
    points = best.le(1).map({True: 100, False: 1})
    higher = table.better.eq('higher')
    means = {}
    for key in keys:
        sign = (higher & (key != 'drop')).map({True: 1, False: -1})
        gain = points * sign * table[f'{key}_difference']
        means[KEYS[key]] = gain.groupby(table.arm, sort=False).agg(
            lambda values: f'{values.mean():+.2f}' if values.notna().sum()
            == table.comparison.nunique() else '-')
    cells = pd.DataFrame(means)
    return _markdown(cells[(cells != '-').any(axis=1)])


def _cell(row: pd.Series, key: str, verdict: float, digits: int) -> str:
    mean, difference, half = (
        '' if pd.isna(row[name]) else f'{row[name]:{sign}.{digits}f}'
        for name, sign in ((f'{key}_mean', ''), (f'{key}_difference', '+'),
                           (f'{key}_half_width', '')))
    change = f'{difference} ± {half}' if half else difference
    bold = '**' if verdict in (1, -1) else ''
    return (mean or '-') + (f' ({bold}{change}{bold})' if change else '')


def _markdown(cells: pd.DataFrame) -> str:
    head = ['arm', *cells]
    lines = [head, ['---'] * len(head), *cells.reset_index().to_numpy()]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)

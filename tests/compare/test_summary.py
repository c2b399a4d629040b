"""Several comparisons in one table."""
from pathlib import Path

import pandas as pd
import pytest

from mmpsw.commands import compare
from mmpsw.compare import summary
from mmpsw.compare.table import verdicts

CHECKOUT = Path(__file__).resolve().parents[2]

KEYS = ('final', 'best', 'area', 'drop')


def write(folder, metric, better, rows):
    """A table.csv from {arm: {key: (mean, difference, half width)}}."""
    folder.mkdir()
    pd.DataFrame([
        dict(arm=arm, metric=metric, better=better, **{
            f'{key}_{what}': value for key in KEYS for what, value in zip(
                ('mean', 'difference', 'half_width', 'n'),
                (*numbers.get(key, (None, ) * 3), 3 if key in numbers
                 and arm != 'baseline' else None))
        }) for arm, numbers in rows.items()
    ]).to_csv(folder / 'table.csv', index=False)
    return folder / 'table.csv'


@pytest.fixture
def folders(tmp_path):
    one = write(tmp_path / 'one', 'mIoU', 'higher', {
        'baseline': dict(final=(70.04, None, None), best=(71, None, None),
                         drop=(2.5, None, None)),
        'pswa': dict(final=(75.0, 4.96, 1.25), drop=(0.5, -2.0, 0.3)),
        'ema': dict(final=(71.0, 0.96, 1.25), drop=(2.6, 0.1, 0.3))})
    two = write(tmp_path / 'two', 'loss', 'lower', {
        'baseline': dict(final=(0.5, None, None), best=(0.4, None, None)),
        'pswa': dict(final=(0.625, 0.125, 0.1))})
    return [one.parent, two]


@pytest.mark.parametrize('key', ['final', 'drop'])
def test_a_difference_that_is_not_a_number_is_undecided(tmp_path, key):
    nan = float('nan')
    write(tmp_path / 'one', 'mIoU', 'higher', {
        'baseline': {key: (70., None, None)}, 'pswa': {key: (nan, nan, nan)},
        'ema': {key: (71., 1., nan)}})
    table = summary.read([tmp_path / 'one'])
    assert list(verdicts(table, key))[1:] == [0, 0]
    assert '| pswa | 0 / 1 / 0 |' in summary.tally(table, [key])
    assert '| pswa | - |' in summary.as_markdown(table, key)
    assert '**' not in summary.as_markdown(table, key)


def test_arms_may_be_called_by_numbers(tmp_path):
    write(tmp_path / 'one', 'mIoU', 'higher', {
        '00': {}, '01': dict(final=(75., 5., 1.))})
    table = summary.read([tmp_path / 'one'])
    assert '| 01 | 1 / 0 / 0 |' in summary.tally(table, ['final'])


@pytest.mark.parametrize('kind, count', [
    ('results', 2 * 11 + 3 * 12), ('long', 15 + 6 + 3 * 16)])
def test_the_committed_summary_follows_from_the_committed_tables(
        capsys, kind, count):
    folders = sorted(CHECKOUT.glob(f'configs/*/{kind}/*'))
    assert compare.main(['summary', *map(str, folders), '--keys', 'final',
                         'area', 'drop']) == 0
    text = (CHECKOUT / 'configs' / 'README.md').read_text()
    printed = capsys.readouterr().out.splitlines()
    rows = [line for line in printed if line.startswith('|')]
    assert len(rows) == count
    assert [row for row in rows if row not in text.splitlines()] == []


def test_two_comparisons_by_hand(folders, tmp_path, capsys):
    """The other table has no ema, and no drops; ema is level in its one."""
    picture = tmp_path / 'summary.png'
    assert compare.main(['summary', *map(str, folders), '--keys', 'final',
                         'drop', '--plot', str(picture)]) == 0
    printed = capsys.readouterr().out
    assert '''\
| arm | final value | drop per validation |
| --- | --- | --- |
| pswa | 1 / 0 / 1 | 1 / 0 / 0 |
| ema | 0 / 1 / 0 | 0 / 1 / 0 |
''' in printed
    assert '''\
| arm | final value | drop per validation |
| --- | --- | --- |
| pswa | -3.77 | - |
''' in printed
    assert '''\
| arm | one, mIoU | two, loss |
| --- | --- | --- |
| baseline | 70.0 | 0.500 |
| pswa | 75.0 (**+5.0 ± 1.2**) | 0.625 (**+0.125 ± 0.100**) |
| ema | 71.0 (+1.0 ± 1.2) | - |
''' in printed
    assert '| baseline | 2.50 | - |' in printed
    assert picture.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('argv, message', [
    (['nowhere'], 'does not exist'),
    (['{one}', '{one}'], "two comparisons are called 'one'"),
    (['{one}', '{one}/report'], "two comparisons are called 'one'"),
    (['{wrong}'], 'is no table of a comparison'),
])
def test_bad_input(folders, tmp_path, capsys, argv, message):
    (tmp_path / 'wrong.csv').write_text('a,b\n1,2\n')
    (folders[0] / 'report').mkdir()
    (folders[0] / 'report' / 'table.csv').write_bytes(
        (folders[0] / 'table.csv').read_bytes())
    argv = [text.format(one=folders[0], wrong=tmp_path / 'wrong.csv')
            for text in argv]
    assert compare.main(['summary', *argv]) == 2
    assert message in capsys.readouterr().err

"""Several comparisons in one table."""
from pathlib import Path

import pandas as pd
import pytest

from mmpsw.commands import compare
from mmpsw.compare import summary, table

CHECKOUT = Path(__file__).resolve().parents[2]


def write(folder, metric, better, arms):
    """A points.csv from {arm: {seed: last values}}, after a first of 0."""
    folder.mkdir()
    runs = [(arm, seed, value) for arm, seeds in arms.items()
            for seed, value in seeds.items()]
    pd.DataFrame([
        dict(arm=arm, run=run, seed=seed, unit='epoch', step=step, key=metric,
             better=better, value=value)
        for run, (arm, seed, last) in enumerate(runs)
        for step, value in ((1, 0.), (2, last))
    ]).to_csv(folder / table.FILE, index=False)
    return folder / table.FILE


def statistics(*folders):
    found = table.load(folders)
    return table.statistics(found, 'baseline'), found


@pytest.fixture
def folders(tmp_path):
    """Differences of 4 and 6, of -1 and 3; of 0.125 in both."""
    one = write(tmp_path / 'one', 'mIoU', 'higher', {
        'baseline': {0: 70., 1: 71.}, 'pswa': {0: 74., 1: 77.},
        'ema': {0: 69., 1: 74.}})
    two = write(tmp_path / 'two', 'loss', 'lower', {
        'baseline': {0: .5, 1: .6}, 'pswa': {0: .625, 1: .725}})
    return [one.parent, two]


def test_a_difference_that_is_not_a_number_is_undecided(tmp_path):
    nan = float('nan')
    write(tmp_path / 'one', 'mIoU', 'higher', {
        'baseline': {0: 70., 1: 70.}, 'pswa': {0: nan, 1: 80.}})
    numbers, found = statistics(tmp_path / 'one')
    for key in ('final', 'drop'):
        assert '| pswa | 0 / 1 / 0 |' in summary.tally(numbers, [key])
        assert '| pswa | - |' in summary.as_markdown(numbers, found, key)


def test_arms_may_be_called_by_numbers(tmp_path):
    write(tmp_path / 'one', 'mIoU', 'higher', {
        'baseline': {0: 70., 1: 70.}, '01': {0: 71., 1: 71.}})
    numbers, _ = statistics(tmp_path / 'one')
    assert '| 01 | 1 / 0 / 0 |' in summary.tally(numbers, ['final'])


def test_the_committed_summary_is_what_the_command_prints(capsys):
    files = sorted(CHECKOUT.glob('configs/study/*_runs.csv'))
    assert compare.main(['summary', *map(str, files), '--keys', 'final',
                         'area', 'drop']) == 0
    text = (CHECKOUT / 'configs/study/summary.md').read_text()
    assert capsys.readouterr().out == text


def test_two_comparisons_by_hand(folders, tmp_path, capsys):
    """t(0.975, 1) = 12.706: +5 +- 12.7, +1 +- 25.4; +0.125 +- 0."""
    picture = tmp_path / 'summary.png'
    words = ['summary', *map(str, folders), '--keys', 'final', 'drop',
             '--plot', str(picture)]
    assert compare.main(words) == 0
    printed = capsys.readouterr().out
    assert '''\
| arm | final value | drop per validation |
| --- | --- | --- |
| pswa | 0 / 1 / 1 | 0 / 1 / 1 |
| ema | 0 / 1 / 0 | 0 / 1 / 0 |
''' in printed
    assert '''\
| arm | final value | drop per validation |
| --- | --- | --- |
| pswa | +2.44 | -0.06 |
''' in printed
    assert '''\
| arm | one, mIoU | two, loss |
| --- | --- | --- |
| baseline | 70.5 | 0.550 |
| pswa | 75.5 (+5.0 ± 12.7) | 0.675 (**+0.125 ± 0.000**) |
| ema | 71.5 (+1.0 ± 25.4) | - |
''' in printed
    assert '| baseline | 0.00 | 0.5500 |' in printed
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert compare.main(words) == 2  # nothing is overwritten unasked
    assert '--overwrite' in capsys.readouterr().err
    assert compare.main([*words, '--overwrite', '--baseline', 'pswa']) == 0
    assert '| baseline | 70.5 (-5.0 ± 12.7) |' in capsys.readouterr().out


def test_how_many_intervals_err_by_chance_is_said(capsys):
    """Of the siblings: three comparisons, each with its arms."""
    files = sorted(CHECKOUT.glob('configs/*/runs.csv'))
    assert compare.main(['summary', *map(str, files)]) == 0
    arms = sum(rows.arm.nunique() - 1 for file in files for _, rows in
               pd.read_csv(file).groupby('comparison'))
    assert f'{arms} intervals at 95 %: about {arms * 0.05:.2g}' in (
        capsys.readouterr().out)


@pytest.mark.parametrize('argv, message', [
    (['nowhere'], 'does not exist'),
    (['{one}', '{one}'], "two comparisons are called 'one'"),
    (['{one}', '{one}/report'], "two comparisons are called 'one'"),
    (['{wrong}'], 'is no table of a comparison'),
    (['{one}', '--plot', 'x.txt'], 'ends in .png, .svg or .pdf'),
    (['{one}', '--plot', 'x'], 'ends in .png, .svg or .pdf'),
    (['{one}', '--baseline', 'y'], "'y' is not an arm; give one of base"),
])
def test_bad_input(folders, tmp_path, capsys, argv, message):
    (tmp_path / 'wrong.csv').write_text('a,b\n1,2\n')
    (folders[0] / 'report').mkdir()
    (folders[0] / 'report' / table.FILE).write_bytes(
        (folders[0] / table.FILE).read_bytes())
    argv = [text.format(one=folders[0], wrong=tmp_path / 'wrong.csv')
            for text in argv]
    assert compare.main(['summary', *argv]) == 2
    assert message in capsys.readouterr().err

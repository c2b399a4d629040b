"""Several comparisons in one table."""
import pytest

from mmpsw.commands import compare
from mmpsw.compare import summary

TABLE = '''\
arm,metric,better,final_mean,final_difference,final_half_width,best_mean,\
drop_mean,drop_difference,drop_half_width
baseline,mIoU,higher,70.04,,,71,2.5,,
pswa,mIoU,higher,75.0,4.96,1.25,76,0.5,-2.0,0.3
ema,mIoU,higher,71.0,0.96,1.25,76,2.6,0.1,0.3
'''
OTHER = '''\
arm,metric,better,final_mean,final_difference,final_half_width,best_mean
baseline,loss,lower,0.5,,,0.4
pswa,loss,lower,0.625,0.125,0.1,0.5
'''


@pytest.fixture
def folders(tmp_path):
    for name, text in (('one', TABLE), ('two', OTHER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'table.csv').write_text(text)
    return [tmp_path / 'one', tmp_path / 'two' / 'table.csv']


def test_the_table_of_two(folders):
    assert summary.as_markdown(summary.read(folders)) == '''\
| arm | one, mIoU | two, loss |
| --- | --- | --- |
| baseline | 70.0 | 0.500 |
| pswa | 75.0 (**+5.0 ± 1.2**) | 0.625 (**+0.125 ± 0.100**) |
| ema | 71.0 (+1.0 ± 1.2) | - |
'''


def test_what_is_better_follows_the_metric_and_a_drop_is_never(folders):
    one, two = summary.read(folders)
    assert one.verdict('pswa', 'final') == 1
    assert one.verdict('ema', 'final') == 0
    assert two.verdict('pswa', 'final') == -1
    assert one.verdict('pswa', 'drop') == 1
    assert two.verdict('baseline', 'final') == 0


def test_the_tally_by_hand(folders):
    """The other table has no ema, and no drops; ema is level in its one."""
    assert summary.tally(summary.read(folders), ['final', 'drop']) == '''\
| arm | final value | drop per validation |
| --- | --- | --- |
| pswa | 1 / 0 / 1 | 1 / 0 / 0 |
| ema | 0 / 1 / 0 | 0 / 1 / 0 |
'''


def test_the_command_prints_and_draws(folders, tmp_path, capsys):
    picture = tmp_path / 'summary.png'
    assert compare.main(['summary', *map(str, folders), '--keys', 'final',
                         'drop', '--plot', str(picture)]) == 0
    printed = capsys.readouterr().out
    assert '2.50' in printed and '| pswa | 1 / 0 / 1 | 1 / 0 / 0 |' in printed
    assert picture.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('argv, message', [
    (['nowhere'], 'does not exist'),
    (['{one}', '{one}'], "two comparisons are called 'one'"),
    (['{one}', '--keys', 'mean'], "'mean' is not a number"),
    (['{wrong}'], 'is no table of a comparison'),
])
def test_bad_input(folders, tmp_path, capsys, argv, message):
    (tmp_path / 'wrong.csv').write_text('a,b\n1,2\n')
    argv = [text.format(one=folders[0], wrong=tmp_path / 'wrong.csv')
            for text in argv]
    assert compare.main(['summary', *argv]) == 2
    assert message in capsys.readouterr().err

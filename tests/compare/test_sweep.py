"""The metric against one setting, by hand."""
import pandas as pd
import pytest
from compare.work_dirs import grid

from mmpsw.commands import compare
from mmpsw.compare import sweep

KEY = 'optim_wrapper.optimizer.lr'
# By the rate: the last validations of two seeds. The mean of the baseline is
# near its best at 0.1 and 0.2, and at 0.8, which lies beyond a gap.
FINAL = {
    0.1: dict(baseline=(89, 90), pswa=(90, 91)),
    0.2: dict(baseline=(90, 90), pswa=(91, 91)),
    0.4: dict(baseline=(70, 80), pswa=(92, 90)),
    0.8: dict(baseline=(90, 89), pswa=(80, 80)),
}


@pytest.fixture()
def folders(tmp_path):
    made = []
    for rate in FINAL:
        work = grid(tmp_path / f'lr_{rate}', {
            arm: {seed: [50., value] for seed, value in enumerate(values)}
            for arm, values in FINAL[rate].items()})
        for config in work.rglob('config.py'):
            config.write_text(
                config.read_text() +
                f'optim_wrapper = dict(optimizer=dict(lr={rate}))\n')
        made.append(str(work))
    return made


def test_the_range_of_rates_around_the_best(folders):
    runs = sweep.read(folders, KEY, 'acc', 'greater')
    assert {*runs.better} == {'higher'} and {*runs.key} == {'acc'}
    assert list(runs.arm.unique()) == ['baseline', 'pswa']  # as given
    assert len(runs) == 16
    table = sweep.robustness(runs, within=1)
    means = {rate: [sum(v) / 2 for v in arms.values()]
             for rate, arms in FINAL.items()}
    for rate, (baseline, pswa) in means.items():
        assert list(table[rate]) == [baseline, pswa]
    ranges = table[['best', 'lowest', 'highest']]
    assert ranges.loc['baseline'].tolist() == [90, 0.1, 0.2]
    assert ranges.loc['pswa'].tolist() == [91, 0.1, 0.4]
    lower = sweep.robustness(runs.assign(better='lower'), within=1)
    assert lower.loc['pswa', ['best', 'lowest', 'highest']].tolist() == [
        80, 0.8, 0.8]


def test_the_command_prints_it_and_writes_every_run(folders, tmp_path,
                                                    capsys):
    out = tmp_path / 'out'
    words = ['sweep', *folders, '--metric', 'acc', '--rule', 'greater',
             '--out', str(out)]
    assert compare.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith('| baseline'))
    assert row.replace(' ', '').split('|')[2:-1] == [
        '89.5', '90.0', '75.0', '89.5', '90.0', '0.1', '0.2']
    written = pd.read_csv(out / 'sweep.csv')
    assert written.value.sum() == sum(
        sum(v) for arms in FINAL.values() for v in arms.values())
    assert (out / 'sweep.png').stat().st_size > 10_000
    assert compare.main(words) == 2  # nothing is overwritten unasked
    assert '--overwrite' in capsys.readouterr().err


@pytest.mark.parametrize('words, message', [
    (['--key', 'optim_wrapper.lr'], 'has no number at --key'),
    (['--key', 'train_cfg.max_epochs'],
     'both have the arm baseline with train_cfg.max_epochs=2'),
])
def test_a_wrong_key_ends_in_one_line(folders, capsys, words, message):
    assert compare.main(['sweep', *folders, '--metric', 'acc', '--rule',
                         'greater', *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1

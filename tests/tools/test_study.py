"""tools/analysis/study.py: by hand, and over the committed numbers."""
from pathlib import Path

import pandas as pd
import pytest
from scripts import script

study = script('analysis/study.py')
COMMITTED = Path(__file__).parents[2] / 'configs' / 'study'


@pytest.fixture
def task(tmp_path):
    """Seed 0 is best at 0.1, seed 1 at 0.2, and seed 2 has the mean's."""
    rows = [('constant', 12, rate, 'psw', seed, 12, value)
            for rate, values in ((0.1, (0.9, 0.1)), (0.2, (0.5, 0.7, 0.6)))
            for seed, value in enumerate(values)]
    rows += [('constant', 12, 0.2, 'psw', 0, 6, 0.2),
             ('decay', 12, 0.2, 'psw', 0, 12, 0.3)]
    pd.DataFrame(rows, columns=['regime', 'length', 'rate', 'arm', 'seed',
                                'step', 'value']).to_csv(
        tmp_path / 'bccd.csv', index=False)
    return study.Task(tmp_path, 'bccd')


def test_a_seed_does_not_choose_its_own_rate(task):
    values = study.at_best_rate(task, 'constant', 'psw')
    assert values.to_dict() == pytest.approx({0: 50., 1: 10., 2: 60.})
    assert study.best_rate(task, 'constant', 'psw', study.SWEPT) == 0.2


def test_the_last_validation_of_each_seed(task):
    assert task.final('constant', 'psw', 12, 0.2).to_dict() == pytest.approx(
        {0: 50., 1: 70., 2: 60.})
    assert task.final('constant', 'baseline', 12, 0.2).empty


def test_differences_are_paired_over_the_seeds():
    """1, 2 and 3: their standard error is 0.577, and t(0.975, 2) 4.303."""
    values = pd.Series({0: 11., 1: 12., 2: 13., 3: 50.})
    reference = pd.Series({0: 10., 1: 10., 2: 10.})
    assert study.compared(values, reference) == '21.5 (+2.0 ± 2.5)'
    assert study.compared(values[:2], reference) == '11.5 (+1.5)'
    assert study.compared(reference, reference) == '10.0'
    assert study.compared(values[:0], reference) == '-'


def test_one_command_makes_all_of_the_committed_numbers(tmp_path, capsys):
    assert study.main(['--data', str(COMMITTED), '--out', str(tmp_path)]) == 0
    pictures = {path.name for path in tmp_path.iterdir()}
    assert pictures == {'tuned.png', 'windows.png', 'extended.png',
                        'written_back.png', 'hero.png'}
    assert capsys.readouterr().out.count('|:--') >= 12

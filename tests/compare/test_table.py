"""What the tables say about curves worked out by hand."""
import csv
import math

import pytest

from mmpsw.compare import table
from mmpsw.compare.runs import Arm, Run


def run(*values, **others):
    points = tuple(enumerate(values, start=1))
    return Run('run', 'coco/bbox_mAP', points, **others)


BASELINE = Arm('baseline', (run(0.1, 0.5, 0.4, time_per_iter=0.2), ))
BETTER = Arm('pswa', (run(0.5, 0.6, 0.6, time_per_iter=0.21), ))
WORSE = Arm('a [red] arm', (run(0.3), ))


def seeded(name, **curves):
    """An arm from s0=[...], s1=[...]."""
    return Arm(name, tuple(run(*values, seed=int(seed[1:]))
                           for seed, values in curves.items()))


def cells(line):
    """A row of the plain table: columns are two blanks apart."""
    return [cell.strip() for cell in line.split('  ') if cell.strip()]


def test_text_of_one_seed():
    # The baseline reaches its best, 0.5, at 2; the area of the one point that
    # all three arms have is that point.
    lines = table.as_text([BASELINE, BETTER, WORSE], 'baseline').splitlines()
    assert cells(lines[0]) == ['arm', 'best', 'final', 'area', 'drop/epoch',
                               's/iter', 'epochs to match', 'rel. time']
    assert cells(lines[2]) == ['baseline', '0.500', '0.400', '0.100',
                               '0.0500', '0.200', '2 (1.00)', '1.00x']
    assert cells(lines[3]) == ['pswa', '0.600', '0.600', '0.500', '0.0000',
                               '0.210', '1 (0.50)', '1.05x']
    # Never as good, a single point, no time logged; no markup is read.
    assert cells(lines[4]) == ['a [red] arm', '0.300', '0.300', '0.300',
                               *'----']


def test_area_is_the_mean_over_the_points_that_all_runs_have():
    two = table.make_rows([BASELINE, BETTER], 'baseline')
    assert two[0].values['area'].mean == pytest.approx(1.0 / 3)
    gap = Arm('gap', (Run('g', 'coco/bbox_mAP', ((2, 0.2), (3, 0.4))), ))
    rows = table.make_rows([BASELINE, gap], 'baseline')
    assert rows[0].values['area'].mean == pytest.approx(0.9 / 2)
    none = Arm('none', (Run('n', 'coco/bbox_mAP', ((7, 0.2), )), ))
    rows = table.make_rows([BASELINE, none], 'baseline')
    assert [row.values['area'] for row in rows] == [None, None]


def test_text_is_plain_and_aligned():
    text = table.as_text([BASELINE, BETTER, WORSE], 'baseline')
    assert text.isascii()
    assert '\x1b' not in text
    header, rule, *rows = text.splitlines()
    assert set(rule) <= set(' -')
    assert {len(row) for row in rows} == {len(header)}


def test_text_of_one_seed_fits_a_terminal():
    text = table.as_text([BASELINE, BETTER], 'baseline')
    assert max(map(len, text.splitlines())) < 80


def test_markdown():
    header, rule, *rows = table.as_markdown([BASELINE, BETTER],
                                            'baseline').splitlines()
    assert [cell.strip() for cell in header.strip('|').split('|')] == [
        'arm', 'best', 'final', 'area', 'drop/epoch', 's/iter',
        'epochs to match', 'rel. time'
    ]
    assert set(rule) <= set('|-:')
    assert rows[1].strip('|').split('|')[1].strip() == '0.600'


def test_several_seeds_show_spread_and_difference():
    baseline = seeded('baseline', s0=[10.0], s1=[20.0], s2=[30.0])
    # The same seeds in another order, and one that the baseline has not.
    arm = seeded('pswa', s2=[33.0], s0=[11.0], s1=[22.0], s3=[22.0])
    text = table.as_text([baseline, arm], 'baseline')
    assert text.isascii()
    own, against = text.split('against baseline:')
    # mean 22, sd of 11, 22, 33, 22: sqrt(242 / 3)
    assert cells(own.splitlines()[3])[:3] == ['pswa', '4', '22.00 +- 8.98']
    # differences 1, 2, 3: 2 +- 4.3027 / sqrt(3)
    assert against.count('+2.00 +- 2.48') == 3
    assert cells(against.splitlines()[-2])[2:] == ['-', '-', '-']


def test_tables_of_many_seeds_and_memory_fit_a_wide_terminal():
    cost = dict(time_per_iter=0.123, memory=12345.0)
    arms = [Arm(name, tuple(run(10.0, 20.0, seed=i, **cost)
                            for i in range(3)))
            for name in ('baseline', 'switch_ema')]
    assert max(map(len, table.as_text(arms, 'baseline').splitlines())) <= 120


def test_one_pair_has_a_difference_without_an_interval():
    arms = [seeded('baseline', s0=[10.0], s1=[20.0]),
            seeded('pswa', s1=[25.0], s2=[25.0])]
    row = table.as_markdown(arms, 'baseline').splitlines()[3]
    assert [c.strip() for c in row.split('|')][-4:-1] == ['+5.00'] * 3


def test_without_a_shared_seed_there_is_no_difference():
    arms = [seeded('baseline', s0=[10.0], s1=[20.0]),
            seeded('pswa', s2=[25.0], s3=[25.0])]
    assert ' - baseline' not in table.as_text(arms, 'baseline')


def test_lower_is_better():
    low = dict(higher_is_better=False)
    baseline = Arm('baseline', (run(3.0, 1.0, 2.0, **low), ))
    arm = Arm('pswa', (run(1.0, 0.5, 0.4, **low), ))
    lines = table.as_text([baseline, arm], 'baseline').splitlines()
    assert cells(lines[2])[1:] == ['1.00', '2.00', '2.00', '0.500',
                                   '2 (1.00)']
    assert cells(lines[3])[1:] == ['0.40', '0.40', '0.63', '0.000',
                                   '1 (0.50)']
    assert 'lower is better' in table.explain([baseline], 'baseline')[0]


def test_the_zoos_value_stands_beside_the_baselines():
    lines = table.as_text([BASELINE, BETTER], 'baseline', 0.365).splitlines()
    assert 'model zoo' in lines[0]
    assert cells(lines[2])[5] == '0.365'
    assert cells(lines[3])[5] == '-'


def read_csv(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def test_csv_has_the_tables_numbers_in_full(tmp_path):
    baseline = seeded('baseline', s0=[0.1, 0.3], s1=[0.2, 0.3], s2=[0.3, 0.2])
    arm = seeded('a, "b"', s0=[0.2, 0.5], s1=[0.3, 0.6])
    path = table.write_csv([baseline, arm], 'baseline', tmp_path / 't.csv',
                           zoo=0.25)
    first, second = read_csv(path)
    assert second['arm'] == 'a, "b"'
    assert (second['seeds'], second['metric'], second['better'],
            second['unit']) == ('2', 'coco/bbox_mAP', 'higher', 'epoch')
    assert float(second['best_mean']) == pytest.approx(0.55)
    assert float(second['best_std']) == pytest.approx(math.sqrt(0.005))
    # differences 0.2, 0.3; t(0.975, 1) = 12.7062, sd / sqrt(2) = 0.05
    assert float(second['best_difference']) == pytest.approx(0.25)
    assert float(second['best_half_width']) == pytest.approx(
        12.7062 * 0.05, rel=1e-5)
    assert second['best_n'] == '2'
    assert float(second['area_difference']) == pytest.approx(
        ((0.35 - 0.2) + (0.45 - 0.25)) / 2)
    # The baseline's mean is 0.2, 0.2667; the arm's 0.25, 0.55.
    assert (second['match_step'], float(second['match_ratio'])) == ('2', 1.0)
    assert second['time_per_iter_mean'] == second['zoo'] == ''
    assert (first['zoo'], first['best_difference']) == ('0.25', '')
    assert float(first['drop_mean']) == pytest.approx(0.1 / 3)


def test_points_are_all_there_to_compute_from(tmp_path):
    arms = [seeded('a', s3=[0.1, 1 / 3]),
            Arm('b', (Run('b', 'coco/bbox_mAP', ((5, math.nan), )), ))]
    rows = read_csv(table.write_points(arms, tmp_path / 'new' / 'p.csv'))
    assert rows == [
        dict(arm='a', seed='3', step='1', value='0.1'),
        dict(arm='a', seed='3', step='2', value=repr(1 / 3)),
        dict(arm='b', seed='', step='5', value='nan'),
    ]


def test_memory_is_shown_where_it_was_logged():
    arms = [Arm('a', (run(0.1, memory=1500.0), )), Arm('b', (run(0.1), ))]
    lines = table.as_text(arms, 'a').splitlines()
    assert cells(lines[0])[5] == 'memory (MB)'
    assert cells(lines[2])[5] == '1500'
    assert cells(lines[3])[5] == '-'


def test_memory_is_compared_where_both_logged_it():
    arms = [Arm('a', (run(0.1, memory=1000.0), )),
            Arm('b', (run(0.1, memory=1250.0), ))]
    assert table.as_text(arms, 'a').splitlines()[3].endswith('1.25x')


def test_iterations_are_named():
    arm = Arm('a', (run(0.1, 0.2, unit='iteration'), ))
    header = table.as_text([arm], 'a').splitlines()[0]
    assert 'iterations to match' in header
    assert 'drop/validation' in header


def test_an_unknown_baseline_names_the_arms():
    with pytest.raises(ValueError, match=r"'ema'.*\['baseline', 'pswa'\]"):
        table.as_text([BASELINE, BETTER], 'ema')


@pytest.mark.parametrize(('other', 'message'), [
    (Arm('b', ()), "'b' has no run"),
    (Arm('b', (Run('r', 'mIoU', ((1, 1.0), )), )), 'metrics differ'),
    (Arm('b', (run(0.1, unit='iteration'), )), 'steps differ'),
    (Arm('b', (run(0.1, higher_is_better=False), )), 'rules differ'),
])
def test_arms_that_mean_something_else_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        table.as_text([BASELINE, other], 'baseline')

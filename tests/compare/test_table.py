"""What the tables say about curves worked out by hand."""
import math
from pathlib import Path

import pandas as pd
import pytest
from compare.work_dirs import grid, trained

from mmpsw.compare import table
from mmpsw.compare.comparison import read

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def compare(tmp_path):
    """Reads runs of the given values, {arm: {seed: values}}."""

    def make(curves, metric='coco/bbox_mAP', costs=(), **others):
        for arm, seeds in curves.items():
            for seed, values in seeds.items():
                cost = dict(costs).get((arm, seed), {})
                trained(tmp_path / arm / f'seed_{seed}', values, seed,
                        metric=metric, **cost)
        return read([tmp_path], **others)

    return make


def numbers(c, zoo=None):
    return table.numbers(c, zoo).set_index('arm')


def cells(line):
    """A row of the plain table: columns are two blanks apart."""
    return [cell.strip() for cell in line.split('  ') if cell.strip()]


def test_numbers_of_one_seed_by_hand(compare):
    c = compare({'baseline': {0: [0.1, 0.5, 0.4, 0.6, 0.3]},
                 'pswa': {0: [0.2, 0.7, 0.7, 0.7, 0.8]}})
    base, pswa = numbers(c).loc['baseline'], numbers(c).loc['pswa']
    assert (base.best_mean, base.final_mean) == (0.6, 0.3)
    assert base.area_mean == pytest.approx(1.9 / 5)
    # it gains 0.4, loses 0.1, gains 0.2, loses 0.3
    assert base.drop_mean == pytest.approx(0.4 / 4)
    assert pswa.drop_mean == 0
    # the baseline's best is 0.6, at 4; pswa has it at 2
    assert (base.match_step, base.match_ratio) == (4, 1)
    assert (pswa.match_step, pswa.match_ratio) == (2, 0.5)
    assert (pswa.final_difference, pswa.final_n) == (0.5, 1)
    assert math.isnan(pswa.final_half_width) and math.isnan(pswa.final_std)


def test_lower_is_better(compare):
    c = compare({'baseline': {0: [3.0, 1.0, 2.0]},
                 'pswa': {0: [2.0, 1.5, 0.5]}}, metric='val_loss')
    found = numbers(c)
    assert list(found.best_mean) == [1.0, 0.5]
    assert list(found.drop_mean) == [0.5, 0.0]  # rises by 1, in two steps
    assert list(found.match_step) == [2, 3]
    assert 'lower is better' in table.explain(c)[0]


def test_several_seeds_have_students_interval(compare):
    """Differences 1, 2, 3; t(0.975, 2) = 4.3027 in any table."""
    c = compare({'baseline': {0: [10.], 1: [20.], 2: [30.]},
                 'pswa': {2: [33.], 0: [11.], 1: [22.], 3: [22.]}})
    row = numbers(c).loc['pswa']
    # mean 22, sd of 11, 22, 33, 22: sqrt(242 / 3)
    assert (row.seeds, row.best_mean) == (4, 22)
    assert row.best_std == pytest.approx(math.sqrt(242 / 3))
    assert (row.best_difference, row.best_n) == (2, 3)
    assert row.best_half_width == pytest.approx(4.3027 / math.sqrt(3),
                                                rel=1e-4)
    own, against = table.as_text(c, table.numbers(c)).split(
        'against baseline:')
    assert cells(own.splitlines()[3])[:3] == ['pswa', '4', '22.00 +- 8.98']
    assert against.count('+2.00 +- 2.48') == 3
    assert cells(against.splitlines()[4])[2:] == ['-', '-', '-']


def test_matching_compares_the_means_over_seeds(compare):
    # The baseline's mean is 0.2, 0.4, 0.35: its best is 0.4, at 2, although
    # one of its seeds has reached 0.6.
    c = compare({'baseline': {0: [0.1, 0.6, 0.3], 1: [0.3, 0.2, 0.4]},
                 'pswa': {0: [0.3, 0.3, 0.5], 1: [0.3, 0.3, 0.3]},
                 'ema': {0: [0.3, 0.3, 0.3], 1: [0.3, 0.3, 0.3]}})
    found = numbers(c).match_step
    assert (found['baseline'], found['pswa']) == (2, 3)
    assert pd.isna(found['ema'])


def test_the_curve_is_over_the_steps_that_all_seeds_have(compare):
    c = compare({'baseline': {0: [1., 2., 5.], 1: [3., 2.], 2: [5., 2.]}})
    found = table.curve(c, 'baseline')
    assert list(found.index) == [1, 2]
    assert list(found['mean']) == [3.0, 2.0]
    assert list(found['std']) == [2.0, 0.0]  # -2, 0, 2: 8 over n - 1


def test_area_is_the_mean_over_the_points_that_all_runs_have(compare):
    c = compare({'baseline': {0: [0.1, 0.5, 0.4]},
                 'gap': {0: [None, 0.2, 0.4]}})
    assert list(numbers(c).area_mean) == pytest.approx([0.45, 0.3])


def test_points_that_are_not_a_number(compare):
    nan = float('nan')
    c = compare({'baseline': {0: [1., 2.], 1: [1., 2.]},
                 'pswa': {0: [3., nan], 1: [3., 4.]}})
    row = numbers(c).loc['pswa']
    assert row.best_mean == 3.5
    assert math.isnan(row.final_mean) and math.isnan(row.drop_mean)
    assert row.final_n == 2 and math.isnan(row.final_difference)
    assert list(table.verdicts(table.numbers(c), 'final'))[1:] == [0]


def test_runs_of_equal_seeds_are_pairs_and_unknown_ones_of_none(tmp_path):
    for arm, seeds in dict(baseline=[0, 2, 2, None],
                           a=[2, 0, None, 5, 2]).items():
        for number, seed in enumerate(seeds):
            trained(tmp_path / f'{arm}{number}', [10. ** number * (
                1 if arm == 'a' else 0)], seed)
    c = read([f'{path.name[:-1]}={path}' for path in sorted(
        tmp_path.iterdir())], baseline='baseline')
    # a0, a1 and a4 are paired with zeros: 1 + 10 + 10000
    row = numbers(c).loc['a']
    assert (row.final_n, row.final_difference) == (3, 10011 / 3)


@pytest.mark.parametrize(('baseline', 'arm', 'ratio'), [
    ((1.0, 1.2), (2.2, 2.2), 2.0),  # of the medians
    ((1.0, 1.2), (1.2, 1.2), None),  # 0.1 slower, where 0.2 is chance
    ((1.0, ), (2.2, ), None),  # nothing is known of chance
])
def test_times_are_compared_where_the_baselines_own_do_not_vary_more(
        compare, baseline, arm, ratio):
    costs = {(name, seed): dict(time=time)
             for name, times in (('baseline', baseline), ('pswa', arm))
             for seed, time in enumerate(times)}
    c = compare({'baseline': {seed: [1.] for seed in range(len(baseline))},
                 'pswa': {seed: [1.] for seed in range(len(arm))}},
                costs=costs)
    found = numbers(c).time_ratio['pswa']
    shown = table.as_text(c, table.numbers(c))
    if ratio is None:
        assert math.isnan(found) and 'rel. time' not in shown
        assert next(table.time_note(c)).startswith('rel. time is left out')
    else:
        assert found == pytest.approx(ratio) and '2.00x' in shown
        assert '1.100 (1.000 to 1.200)' in shown  # the median and the range
        assert not list(table.time_note(c))
        c.plans['work'] = dict(passengers=['control'])
        assert math.isnan(numbers(c).time_ratio['pswa'])
        assert 'carried control along' in next(table.time_note(c))


def test_memory_is_compared_where_both_logged_it(compare):
    costs = {('baseline', 0): dict(memory=1000.), ('b', 0): dict(memory=1250.)}
    c = compare({'baseline': {0: [.1]}, 'b': {0: [.1]}, 'c': {0: [.1]}},
                costs=costs)
    header, _, base, b, other = table.as_text(
        c, table.numbers(c)).splitlines()
    assert 'memory (MB)' in header and 'rel. memory' in header
    assert (cells(base)[-1], cells(b)[-1], cells(other)[-1]) == (
        '1.00x', '1.25x', '-')


def test_text_and_markdown_show_the_same_in_ascii(compare):
    c = compare({'baseline': {0: [0.1, 0.5, 0.4]},
                 'a [red] arm': {0: [0.3]}})
    text = table.as_text(c, table.numbers(c, zoo=0.365))
    assert text.isascii() and '\x1b' not in text
    assert max(map(len, text.splitlines())) < 84
    rows = [cells(line) for line in text.splitlines()]
    assert rows[0] == ['arm', 'best', 'final', 'area', 'drop/epoch',
                       'model zoo', 'epochs to match']
    assert rows[2] == ['baseline', '0.500', '0.400', '0.100', '0.0500',
                       '0.365', '2 (1.00)']
    # A single point, never as good; no markup is read.
    assert rows[3] == ['a [red] arm', '0.300', '0.300', '0.300', *'---']
    markdown = [[cell.strip() for cell in line.strip('|').split('|')] for line
                in table.as_markdown(c, table.numbers(c, 0.365)).splitlines()]
    assert markdown[0] == rows[0] and markdown[2:] == rows[2:]


@pytest.mark.parametrize('folder, metric', [
    ('cls/results/sign_digits_adamw', 'accuracy/top1'),
    ('det/variants/bccd_constant', 'coco/bbox_mAP'),
])
def test_committed_tables_follow_from_the_committed_points(tmp_path, folder,
                                                           metric):
    """Their numbers were computed by another implementation than this."""
    folder = CHECKOUT / 'configs' / folder
    points = pd.read_csv(folder / 'points.csv')
    for (arm, seed), run in points.groupby(['arm', 'seed']):
        trained(tmp_path / arm / f'seed_{seed}', list(run.value), seed,
                metric=metric)
    grid(tmp_path, {}, arms={arm: arm for arm in points.arm.unique()},
         seeds=sorted(map(int, points.seed.unique())))
    found = table.numbers(read([tmp_path]))
    found.to_csv(tmp_path / 'table.csv', index=False)
    written = pd.read_csv(tmp_path / 'table.csv')
    expected = pd.read_csv(folder / 'table.csv')
    assert list(written) == list(expected)
    same = [name for name in written if not name.startswith('time_')]
    pd.testing.assert_frame_equal(written[same], expected[same], rtol=1e-9)

"""What the tables say about curves worked out by hand."""
import math
from pathlib import Path

import pandas as pd
import pytest
from compare.work_dirs import trained
from scipy.stats import ttest_rel

from mmpsw.compare import table
from mmpsw.compare.comparison import read
from mmpsw.compare.table import curve, finding, long, shown, statistics

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


def numbers(c, key):
    """The statistics of a key, by arm."""
    found = statistics(long(c), c.baseline)
    return found[found.key == key].set_index('arm')


def text(c, zoo=None):
    return table.as_text(shown(statistics(long(c), c.baseline), long(c),
                               c.baseline, zoo))


def cells(line):
    """A row of the plain table: columns are two blanks apart."""
    return [cell.strip() for cell in line.split('  ') if cell.strip()]


def test_numbers_of_one_seed_by_hand(compare):
    c = compare({'baseline': {0: [0.1, 0.5, 0.4, 0.6, 0.3]},
                 'pswa': {0: [0.2, 0.7, 0.7, 0.7, 0.8]}})
    base = {key: numbers(c, key).loc['baseline'] for key in table.KEYS}
    pswa = {key: numbers(c, key).loc['pswa'] for key in table.KEYS}
    assert (base['best']['mean'], base['final']['mean']) == (0.6, 0.3)
    assert base['area']['mean'] == pytest.approx(1.9 / 5)
    # it gains 0.4, loses 0.1, gains 0.2, loses 0.3
    assert base['drop']['mean'] == pytest.approx(0.4 / 4)
    assert pswa['drop']['mean'] == 0
    final = pswa['final']
    assert (final.difference, final.pairs) == (0.5, 1)
    assert math.isnan(final.half_width) and math.isnan(final['std'])
    assert math.isnan(final.verdict)
    # the baseline's best is 0.6, at 4; pswa has it at 2
    assert list(shown(statistics(long(c), 'baseline'), long(c), 'baseline')[
        'epochs to match']) == ['4 (1.00)', '2 (0.50)']


def test_lower_is_better(compare):
    c = compare({'baseline': {0: [3.0, 1.0, 2.0]},
                 'pswa': {0: [2.0, 1.5, 0.5]}}, metric='val_loss')
    assert list(numbers(c, 'best')['mean']) == [1.0, 0.5]
    assert list(numbers(c, 'final')['mean']) == [2.0, 0.5]
    assert list(numbers(c, 'area')['mean']) == pytest.approx([2., 4 / 3])
    # rises by 1, in two steps
    assert list(numbers(c, 'drop')['mean']) == [0.5, 0.0]
    assert [row.split()[-2:] for row in text(c).splitlines()[-2:]] == [
        ['2', '(1.00)'], ['3', '(1.50)']]
    assert finding(statistics(long(c), 'baseline'), 'baseline') == (
        'At the end, pswa is 1.5 below the baseline. Over the training, pswa '
        'is 0.67 below the baseline. With one seed, any of it may be chance. '
        'Lower is better.')


def test_several_seeds_have_students_interval(compare):
    """Differences 1, 2, 3; t(0.975, 2) = 4.3027 in any table."""
    c = compare({'baseline': {0: [10.], 1: [20.], 2: [30.]},
                 'pswa': {2: [33.], 0: [11.], 1: [22.], 3: [22.]}})
    row = numbers(c, 'best').loc['pswa']
    # mean 22, sd of 11, 22, 33, 22: sqrt(242 / 3)
    assert (row.runs, row['mean']) == (4, 22)
    assert row['std'] == pytest.approx(math.sqrt(242 / 3))
    assert (row.difference, row.pairs, row.verdict) == (2, 3, 0)
    assert row.half_width == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    own, against = text(c).split('\n\n')
    assert cells(own.splitlines()[3])[:3] == ['pswa', '4', '22.00 +- 8.98']
    assert against.count('+2.00 +- 2.48') == 3
    assert cells(against.splitlines()[2])[1:4] == ['-', '-', '-']


def test_matching_compares_the_means_over_seeds(compare):
    # The baseline's mean is 0.2, 0.4, 0.35: its best is 0.4, at 2, although
    # one of its seeds has reached 0.6.
    c = compare({'baseline': {0: [0.1, 0.6, 0.3], 1: [0.3, 0.2, 0.4]},
                 'pswa': {0: [0.3, 0.3, 0.5], 1: [0.3, 0.3, 0.3]},
                 'ema': {0: [0.3, 0.3, 0.3], 1: [0.3, 0.3, 0.3]}})
    frame = shown(statistics(long(c), 'baseline'), long(c), 'baseline')
    assert frame['epochs to match'].to_dict() == {
        'baseline': '2 (1.00)', 'pswa': '3 (1.50)', 'ema': '-'}


def test_the_curve_is_over_the_steps_that_all_seeds_have(compare):
    c = compare({'baseline': {0: [1., 2., 5.], 1: [3., 2.], 2: [5., 2.]}})
    found = curve(long(c), 'baseline')
    assert list(found.index) == [1, 2]
    assert list(found['mean']) == [3.0, 2.0]
    assert list(found['std']) == [2.0, 0.0]  # -2, 0, 2: 8 over n - 1


def test_area_is_the_mean_over_the_points_that_all_runs_have(compare):
    """Of steps 2 and 3, the first of which counts for two epochs."""
    c = compare({'baseline': {0: [0.1, 0.5, 0.4]},
                 'gap': {0: [None, 0.2, 0.5]}})
    assert list(numbers(c, 'area')['mean']) == pytest.approx([
        (2 * 0.5 + 0.4) / 3, (2 * 0.2 + 0.5) / 3])


def test_validations_at_uneven_distances_count_for_their_epochs(tmp_path):
    """As RTMDet's: at 10, 20, and then in each epoch up to 23."""
    values = {10: 0.1, 20: 0.3, 21: 0.4, 22: 0.4, 23: 0.5}
    trained(tmp_path / 'baseline', [values.get(step) for step in
                                    range(1, 24)], 0, metric='acc')
    # 0.1 and 0.3 for ten epochs each, the others for one
    assert numbers(read([tmp_path]), 'area')['mean'].item() == pytest.approx(
        (10 * 0.1 + 10 * 0.3 + 0.4 + 0.4 + 0.5) / 23)


def test_points_that_are_not_a_number(compare):
    nan = float('nan')
    c = compare({'baseline': {0: [1., 2.], 1: [1., 2.]},
                 'pswa': {0: [3., nan], 1: [3., 4.]}})
    assert numbers(c, 'best')['mean']['pswa'] == 3.5
    for key in ('final', 'area', 'drop'):
        row = numbers(c, key).loc['pswa']
        assert math.isnan(row['mean']) and math.isnan(row.difference)
        assert (row.pairs, row.verdict) == (2, 0)


def test_runs_of_equal_seeds_are_pairs_and_unknown_ones_of_none(tmp_path):
    for arm, seeds in dict(baseline=[0, 2, 2, None],
                           a=[2, 0, None, 5, 2], b=[7]).items():
        for number, seed in enumerate(seeds):
            trained(tmp_path / f'{arm}{number}', [10. ** number * (
                0 if arm == 'baseline' else 1)], seed)
    c = read([f'{path.name[:-1]}={path}' for path in sorted(
        tmp_path.iterdir())], baseline='baseline')
    # a0, a1 and a4 are paired with zeros: 1 + 10 + 10000
    rows = numbers(c, 'final')
    assert (rows.pairs['a'], rows.difference['a']) == (3, 10011 / 3)
    # no pair: the difference of the means, without an interval
    assert (rows.pairs['b'], rows.difference['b']) == (0, 1)
    assert math.isnan(rows.half_width['b'])


def test_what_was_found_comes_first(compare):
    """Differences of 1 and 3, 1.9 and 2.1, and -2 and -2, by fractions."""
    c = compare({'baseline': {0: [.50], 1: [.60]},
                 'psw': {0: [.51], 1: [.63]},
                 'ema': {0: [.519], 1: [.621]},
                 'swa': {0: [.48], 1: [.58]}})
    found = statistics(long(c), 'baseline')
    # t(0.975, 1) = 12.706, and the standard error of 1.9 and 2.1 is 0.1
    sentence = ('ema is 2.0 +- 1.3 points above the baseline; swa 2.0 +- 0.0 '
                'below; psw is undecided.')
    assert finding(found, 'baseline') == (
        f'At the end, {sentence} Over the training, {sentence}')
    one = compare({'lr': {0: [.51]}})
    assert 'above the baseline; lr 1.0 (one seed); swa 2.0' in finding(
        statistics(long(one), 'baseline'), 'baseline')
    assert finding(statistics(long(c), 'swa'), 'swa').startswith(
        'At the end, baseline is 2.0 +- 0.0 points above swa; ema 4.0 +- 1.3;')


def test_a_tie_and_a_run_without_a_number_are_said(compare):
    c = compare({'baseline': {0: [.50]}, 'psw': {0: [.50]},
                 'ema': {0: [float('nan')]}})
    assert finding(statistics(long(c), 'baseline'), 'baseline').startswith(
        'At the end, psw is level with the baseline; ema has a run without a '
        'number.')


def test_with_one_seed_nothing_speaks_of_intervals(compare):
    c = compare({'baseline': {0: [.50]}, 'psw': {0: [.524]},
                 'pswa': {0: [.497]}})
    found = statistics(long(c), 'baseline')
    assert finding(found, 'baseline').startswith(
        'At the end, psw is 2.4 points above the baseline; pswa 0.3 below.')
    assert 'interval' not in ' '.join(table.explain(found, long(c),
                                                    'baseline'))
    assert table.misses(found) == ''


def test_how_many_intervals_err_by_chance(compare):
    c = compare({arm: {0: [.5], 1: [.6]} for arm in ('baseline', *'abcd')})
    found = statistics(long(c), 'baseline')
    assert table.misses(found[found.key != 'drop']).startswith(
        '12 intervals at 95 %: about 0.6 of them')
    assert table.misses(found[found.key == 'best']) == ''  # four


def test_costs_are_shown_where_they_were_logged(compare):
    costs = {('baseline', 0): dict(memory=1000., time=1.), ('b', 0): dict(
        memory=1250.), ('baseline', 1): dict(memory=1000., time=1.2)}
    c = compare({'baseline': {0: [.1], 1: [.1]}, 'b': {0: [.1]},
                 'c': {0: [.1]}}, costs=costs)
    frame = shown(statistics(long(c), 'baseline'), long(c), 'baseline')
    assert list(frame['memory (MB)']) == ['1000', '1250', '-']
    # the median and the range
    assert list(frame['s/iter']) == ['1.100 (1.000 to 1.200)', '-', '-']


def test_text_and_markdown_show_the_same_in_ascii(compare):
    c = compare({'baseline': {0: [0.1, 0.5, 0.4]},
                 'a [red] arm': {0: [0.3, 0.3]}})
    found = text(c, zoo=0.365)
    assert found.isascii() and '\x1b' not in found
    own, against = ([cells(line) for line in part.splitlines()]
                    for part in found.split('\n\n'))
    assert own[0] == ['arm', 'final', 'best', 'area', 'drop/validation']
    assert against[0] == ['arm', 'final - baseline', 'arm - zoo',
                          'best - baseline', 'area - baseline',
                          'epochs to match']
    assert own[3] == ['a [red] arm', '0.300', '0.300', '0.300', '0.0000']
    frame = shown(statistics(long(c), 'baseline'), long(c), 'baseline', 0.365)
    markdown = [[cell.strip() for cell in line.strip('|').split('|')] for line
                in table.as_markdown(frame).splitlines()]
    # No markup is read. Of both, only steps 1 and 2 are in the area.
    assert markdown[0][1:] == list(frame)
    assert markdown[2] == ['baseline', '0.400', '-', '+0.035', '0.500', '-',
                           '0.300', '-', '0.0500', '2 (1.00)']
    assert markdown[3] == ['a [red] arm', '0.300', '-0.100', '-0.065',
                           '0.300', '-0.200', '0.300', '+0.000', '0.0000',
                           '-']


def test_the_baselines_name_is_in_the_columns(compare):
    c = compare({'baseline': {0: [1.]}, 'swa': {0: [2.]}}, baseline='swa')
    frame = shown(statistics(long(c), 'swa'), long(c), 'swa')
    assert list(frame['final - swa']) == ['-1.00', '-']
    assert not [title for title in frame if 'baseline' in title]


def test_a_table_is_written_and_read_again(compare, tmp_path):
    c = compare({'baseline': {0: [1., float('nan')], 1: [.1, .2]},
                 '01': {0: [.3]}}, costs={('01', 0): dict(time=.5)})
    (tmp_path / 'name' / 'report').mkdir(parents=True)
    file = tmp_path / 'name' / 'report' / table.FILE
    long(c).drop(columns='comparison').to_csv(file, index=False)
    again = table.load([file])
    assert set(again.comparison) == {'name'}
    pd.testing.assert_frame_equal(again, long(c, 'name'))


@pytest.mark.parametrize('file, name', [
    ('sign_digits_runs', 'sign_digits_adamw'),
    ('bccd_runs', 'bccd_constant')])
def test_committed_points_give_the_numbers_of_scipy(file, name):
    """mean, std, difference and half width of pswa, at the end."""
    found = table.load([CHECKOUT / f'configs/study/{file}.csv'])
    found = found[found.comparison == name]
    rows = statistics(found, 'baseline').set_index(['arm', 'key'])
    columns = ['mean', 'std', 'difference', 'half_width']
    last = found[found.step == found.step.max()].pivot(
        index='seed', columns='arm', values='value')
    interval = ttest_rel(last.pswa, last.baseline).confidence_interval()
    expected = [last.pswa.mean(), last.pswa.std(),
                (last.pswa - last.baseline).mean(),
                (interval.high - interval.low) / 2]
    assert list(rows.loc[('pswa', 'final'), columns]) == pytest.approx(
        expected, rel=1e-9)
    assert len(last) >= 3

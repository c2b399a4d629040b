"""Curves whose numbers can be worked out by hand."""
import math

import pytest

from mmpsw.compare import metrics


def curve(*values):
    return tuple(enumerate(values, start=1))


def test_best_and_final_of_a_curve_that_dips_at_the_end():
    values = [0.1, 0.5, 0.4]
    assert metrics.best(values) == 0.5
    assert metrics.final(values) == 0.4


def test_best_is_the_least_where_lower_is_better():
    assert metrics.best([3.0, 1.0, 2.0], higher=False) == 1.0


def test_best_passes_by_what_is_not_a_number():
    assert metrics.best([0.2, math.nan, 0.1]) == 0.2


def test_drop_is_the_mean_over_steps_of_what_is_lost():
    # gains 0.4, loses 0.1, gains 0.2, loses 0.3
    assert metrics.drop([0.1, 0.5, 0.4, 0.6, 0.3]) == pytest.approx(0.4 / 4)


def test_drop_counts_rises_where_lower_is_better():
    # falls by 2, rises by 1
    assert metrics.drop([3.0, 1.0, 2.0], higher=False) == 0.5


@pytest.mark.parametrize('values', [[0.1, 0.2, 0.2], [0.5, 0.5]])
def test_drop_of_a_monotonic_curve_is_zero(values):
    assert metrics.drop(values) == 0


def test_drop_of_a_single_point_does_not_exist():
    assert metrics.drop([0.3]) is None


def test_drop_of_a_run_that_diverged_is_not_zero():
    assert math.isnan(metrics.drop([0.3, math.nan]))


def test_area_is_the_mean_over_the_points():
    assert metrics.area([0.1, 0.5, 0.3]) == pytest.approx(0.3)


def test_the_baseline_matches_itself_at_the_first_of_its_best_points():
    baseline = [curve(0.1, 0.5, 0.5, 0.2)]
    assert metrics.epochs_to_match(baseline, baseline) == 2


@pytest.mark.parametrize(('values', 'step'), [
    ((0.5, 0.6, 0.7), 1),  # a tie counts
    ((0.4, 0.6, 0.1), 2),  # and stays counted when it is lost again
    ((0.4, 0.49, 0.499), None),
])
def test_epochs_to_match(values, step):
    baseline = [curve(0.1, 0.5, 0.3)]
    assert metrics.epochs_to_match([curve(*values)], baseline) == step


def test_epochs_to_match_where_lower_is_better():
    baseline = [curve(3.0, 1.0, 2.0)]
    arm = [curve(2.0, 1.5, 1.0)]
    assert metrics.epochs_to_match(arm, baseline, higher=False) == 3


def test_epochs_to_match_names_the_step_and_not_the_place():
    baseline = [((100, 0.1), (200, 0.4))]
    arm = [((100, 0.2), (150, 0.4), (200, 0.3))]
    assert metrics.epochs_to_match(arm, baseline) == 150


def test_epochs_to_match_compares_the_means_over_seeds():
    # The baseline's mean is 0.2, 0.4, 0.35: its best is 0.4, at 2, although
    # one of its seeds has reached 0.6.
    baseline = [curve(0.1, 0.6, 0.3), curve(0.3, 0.2, 0.4)]
    arm = [curve(0.3, 0.3, 0.5), curve(0.3, 0.3, 0.3)]
    assert metrics.epochs_to_match(baseline, baseline) == 2
    assert metrics.epochs_to_match(arm, baseline) == 3


def test_mean_curve_takes_the_steps_that_all_seeds_have():
    curves = [((1, 0.1), (2, 0.2), (3, 0.3)), ((2, 0.4), (3, 0.5))]
    (step_2, mean_2), (step_3, mean_3) = metrics.mean_curve(curves)
    assert (step_2, step_3) == (2, 3)
    assert (mean_2, mean_3) == pytest.approx((0.3, 0.4))


def test_over_seeds_is_mean_and_sample_standard_deviation():
    # deviations -2, 0, 2: the sum of squares is 8, over n - 1 = 2
    assert metrics.over_seeds([1.0, 3.0, 5.0]) == (3.0, 2.0)


def test_over_a_single_seed_nothing_is_known_of_the_spread():
    assert metrics.over_seeds([0.7]) == (0.7, None)


def test_paired_difference_has_students_interval():
    # differences 1, 2, 3: mean 2, sd 1; t(0.975, 2) = 4.3027 in any table
    arm, baseline = [11.0, 22.0, 33.0], [10.0, 20.0, 30.0]
    mean, half_width, n = metrics.paired_difference(arm, baseline)
    assert (mean, n) == (2, 3)
    assert half_width == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)


def test_a_single_pair_has_no_interval():
    assert metrics.paired_difference([0.5], [0.25]) == (0.25, None, 1)


def test_pairs_of_unequal_number_are_refused():
    with pytest.raises(ValueError, match='2 values .* baseline 1'):
        metrics.paired_difference([0.1, 0.2], [0.1])


def test_best_of_nothing_but_nan_is_nan():
    assert math.isnan(metrics.best([math.nan, math.nan]))


def test_the_match_is_given_with_its_ratio_to_the_baselines_own():
    baseline = [curve(0.1, 0.2, 0.3, 0.5, 0.4)]  # best at 4
    assert metrics.match([curve(0.1, 0.2, 0.6)], baseline) == (3, 0.75)
    assert metrics.match([curve(0.1, 0.2, 0.4)], baseline) is None
    assert metrics.match(baseline, baseline) == (4, 1.0)


def test_the_match_where_lower_is_better():
    baseline = [curve(4.0, 2.0, 3.0)]
    assert metrics.match([curve(5.0, 3.0, 3.0, 2.0)], baseline,
                         higher=False) == (4, 2.0)


def test_no_arm_matches_a_baseline_that_diverged_at_once():
    assert metrics.match([curve(0.5)], [curve(math.nan)]) is None


def test_std_curve_is_the_spread_at_each_shared_step():
    curves = [((1, 1.0), (2, 1.0), (3, 9.0)), ((1, 3.0), (2, 1.0)),
              ((1, 5.0), (2, 1.0))]
    assert metrics.std_curve(curves) == ((1, 2.0), (2, 0.0))
    assert metrics.std_curve([curve(0.3)]) == ((1, 0.0), )


def test_shared_steps_are_those_of_all_curves():
    curves = [((1, 0.), (2, 0.)), ((2, 0.), (3, 0.))]
    assert metrics.shared_steps(curves) == {2}


def test_ratio_is_of_the_means():
    assert metrics.ratio([0.3, 0.5], [0.2]) == pytest.approx(2.0)
    assert metrics.ratio([0.3, None], [0.2]) is None
    assert metrics.ratio([0.3], [None]) is None

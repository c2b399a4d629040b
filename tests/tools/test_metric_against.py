"""tools/analysis/metric_against.py, by hand."""
import json

import pytest
from compare.work_dirs import grid
from scripts import script

from mmpsw.compare import comparison

against = script('analysis/metric_against.py')
CURVES = dict(baseline={0: [50., 80.], 1: [50., 90.]},
              cut_50={0: [50., 79.], 1: [50., 87.]},
              cut_90={0: [50., 70.], 1: [50., 76.]})
ZEROS = {'cut_50': ((0.2, 0.5), (0.3, 0.6)), 'cut_90': ((0.4, 0.9), ) * 2}


@pytest.fixture()
def work(tmp_path):
    folder = grid(tmp_path / 'work', CURVES, metric='acc', rule='greater')
    for arm, seeds in ZEROS.items():
        for seed, values in enumerate(seeds):
            path, = folder.glob(f'{arm}/seed_{seed}/*/vis_data/scalars.json')
            lines = path.read_text().splitlines()
            for i, value in enumerate(values):
                lines[i] = json.dumps(json.loads(lines[i]) | {'zeros': value})
            path.write_text('\n'.join(lines) + '\n')
    return folder


@pytest.mark.parametrize('mean, share', [(False, [0, 0.55, 0.9]),
                                         (True, [0, 0.4, 0.65])])
def test_the_last_validation_against_what_was_logged(work, mean, share):
    c = comparison.read([work])
    rows = against.measured(c, 'zeros', mean)
    assert rows.logged.tolist() == pytest.approx(share)
    assert rows.final_difference.tolist()[1:] == [-2, -12]
    line, = [line for line in against.as_markdown(c, rows, 'zeros').split('\n')
             if 'cut_50' in line]
    # Differences of -1 and -3: t(0.975, 1) = 12.706, s / sqrt(2) = 1.
    assert line == f'| cut_50 | {share[1]:.3f} | 83.0 ± 5.7 | -2.0 ± 12.7 |'
    axes, = against.draw(c, rows, 'zeros').axes
    _, drawn, *_ = axes.get_lines()
    assert drawn.get_xydata().ravel().tolist() == pytest.approx(
        [share[1], -2, share[2], -12])


def test_what_nobody_logged_is_refused(work):
    with pytest.raises(ValueError, match="has logged 'shares'"):
        against.measured(comparison.read([work]), 'shares', False)

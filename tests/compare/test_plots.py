"""Pictures are looked at by their pixels."""
import mmcv
import numpy as np
import pytest
from compare.work_dirs import trained

from mmpsw.compare import plots
from mmpsw.compare.comparison import read


def count(image, color):
    """How many pixels have a colour, about."""
    return (np.abs(image.astype(int) - color).max(axis=-1) < 6).sum()


@pytest.fixture
def draw(tmp_path):
    """Draws runs of the given values, {arm: [values of a seed, ...]}."""

    def make(curves, name='c.png'):
        work = tmp_path / name.replace('.', '_')
        for arm, seeds in curves.items():
            for seed, values in enumerate(seeds):
                trained(work / arm / f'seed_{seed}', values, seed)
        figure = plots.plot_curves(read([work]), 'title')
        path = plots.save(figure, tmp_path / 'new' / name)
        return (mmcv.imread(path, channel_order='rgb')
                if path.suffix == '.png' else path.read_text())

    return make


def test_curves_show_every_arm_in_its_own_colour(draw):
    curves = {'baseline': [[0.1, 0.3, 0.2]], 'pswa': [[0.2, 0.3, 0.4]]}
    two = draw(curves, '2.png')
    three = draw({**curves, 'swa': [[0.2, 0.3, 0.3]]}, '3.png')
    assert three.shape == two.shape == (750, 1200, 3)
    orange, blue = (0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)
    assert count(three, orange) > 500 and count(two, orange) > 500
    assert count(three, blue) > 300 and count(two, blue) == 0


def test_many_arms_get_a_panel_each_with_the_baseline(draw):
    arms = {name: [[0.2, 0.3]] for name in ('baseline', *'abcdefg')}
    svg = draw(arms, 'many.svg')
    assert svg.count('id="axes_') == 7  # of a grid of nine
    ink = svg.count('stroke-dasharray')  # the dashed line, and its legends
    assert ink == 7


def test_the_band_is_mean_and_standard_deviation(draw):
    # Mean 0.5 and sd sqrt(0.5) = 0.707, or none: a wide grey band, or none.
    grey = (0xDD, 0xDD, 0xDD)
    far = draw({'baseline': [[0.0, 0.0], [1.0, 1.0]]}, 'far.png')
    near = draw({'baseline': [[0.5, 0.5], [0.5, 0.5]]}, 'near.png')
    assert count(far, grey) > 50_000
    assert count(near, grey) < 9_000  # the lines of the axes' grid


def test_single_points_gaps_and_no_shared_step_are_drawn(draw):
    assert count(draw({'baseline': [[0.5]]}), (0x1A, 0x1A, 0x1A)) > 0
    assert draw({'baseline': [[0.1, 0.2, 0.3], [0.1, float('nan')]],
                 'pswa': [[0.1], [None, 0.1]]}, 'gaps.png').size

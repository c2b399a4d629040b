"""Pictures are looked at by their pixels."""
import mmcv
import numpy as np
import pytest
from compare.work_dirs import grid

from mmpsw.compare import plots
from mmpsw.compare.comparison import read
from mmpsw.compare.table import long, statistics


def count(image, color):
    """How many pixels have a colour, about."""
    return (np.abs(image.astype(int) - color).max(axis=-1) < 6).sum()


@pytest.fixture
def draw(tmp_path):
    """Draws runs of the given values, {arm: [values of a seed, ...]}."""

    def make(curves, name='c.png', differences=False, **keys):
        c = read([grid(tmp_path / name.replace('.', '_'), {
            arm: dict(enumerate(seeds)) for arm, seeds in curves.items()})])
        figure = plots.plot_differences(
            statistics(long(c), c.baseline), c.baseline, **keys
        ) if differences else plots.plot_curves(long(c), c.baseline, 'title',
                                                **keys)
        path = plots.save(figure, tmp_path / 'new' / name)
        return (mmcv.imread(path, channel_order='rgb')
                if path.suffix == '.png' else path.read_text())

    return make


def test_curves_show_every_arm_in_its_own_colour(draw):
    curves = {'baseline': [[0.1, 0.3, 0.2]], 'pswa': [[0.2, 0.3, 0.4]]}
    two = draw(curves, '2.png')
    three = draw({**curves, 'swa': [[0.2, 0.3, 0.3]]}, '3.png')
    assert three.shape == two.shape
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


def test_no_colour_and_marker_repeat_and_arms_keep_their_order():
    found = plots.looks([str(number) for number in range(36)])
    assert len(set(found.values())) == 36
    assert len({color for color, _ in [*found.values()][:6]}) == 6


def test_names_with_a_dollar_are_drawn_as_they_are(draw):
    arms = {name: [[0.2, 0.3]] for name in ('baseline', r'a$\bad$', 'b$')}
    for differences in (False, True):
        svg = draw(arms, f'dollar{differences}.svg', differences)
        assert r'<!-- a$\bad$ -->' in svg and '<!-- b$ -->' in svg
    many = {**arms, **{name: [[0.2, 0.3]] for name in 'vwxyz'}}
    assert r'<!-- a$\bad$ -->' in draw(many, 'panels.svg')


def test_differences_speak_of_intervals_where_there_are_some(draw):
    one = draw({'baseline': [[.1]], 'a': [[.2]]}, '1.svg', True)
    two = draw({'baseline': [[.1], [.2]], 'a': [[.2], [.4]]}, '2.svg', True)
    assert 'difference to baseline' in one and 'interval' not in one
    assert 'interval over seeds' in two


def test_a_narrow_picture_has_its_panels_below_each_other(draw):
    curves = {'baseline': [[.1, .2]], 'a': [[.2, .2]]}
    keys = dict(differences=True, keys=('final', 'area'))
    wide = draw(curves, 'wide.png', width=plots.WIDE, **keys)
    narrow = draw(curves, 'narrow.png', width=plots.NARROW, **keys)
    assert wide.shape[1] == 150 * plots.WIDE > wide.shape[0] * 3
    assert narrow.shape[1] == 150 * plots.NARROW
    assert narrow.shape[0] > narrow.shape[1] / 2

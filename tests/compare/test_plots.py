"""Pictures are looked at by their pixels."""
import subprocess
import sys

import mmcv
import numpy as np

from mmpsw.compare import plots
from mmpsw.compare.runs import Arm, Run


def count(image, color):
    """How many pixels have a colour, about."""
    return (np.abs(image.astype(int) - color).max(axis=-1) < 6).sum()


def read(path):
    return mmcv.imread(path, channel_order='rgb')


def arm(name, *curves):
    return Arm(name, tuple(
        Run(name, 'coco/bbox_mAP', tuple(enumerate(curve, start=1)))
        for curve in curves))


def test_curves_show_every_arm_in_its_own_colour(tmp_path):
    arms = [arm('baseline', [0.1, 0.3, 0.2]), arm('pswa', [0.2, 0.3, 0.4]),
            arm('control', [0.2, 0.3, 0.3])]
    three = read(plots.plot_curves(arms, tmp_path / 'new' / '3.png', 'title'))
    two = read(plots.plot_curves(arms[:2], tmp_path / '2.png', 'title'))
    assert three.shape == two.shape == (750, 1200, 3)
    orange, blue = (0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)
    assert count(three, orange) > 500
    assert count(two, orange) > 500
    assert count(three, blue) > 300
    assert count(two, blue) == 0


def test_the_band_is_mean_and_standard_deviation(tmp_path):
    # Mean 0.5 and sd sqrt(0.5) = 0.707, or none: a wide grey band, or none.
    def grey(curves, name):
        image = read(plots.plot_curves([arm('a', *curves)],
                                       tmp_path / name))
        # A sixth of the black of the line on white.
        return count(image, (0xDA, 0xDA, 0xDA))

    assert grey([[0.0, 0.0], [1.0, 1.0]], 'far.png') > 50_000
    assert grey([[0.5, 0.5], [0.5, 0.5]], 'near.png') < 5_000


def test_a_single_point_is_drawn(tmp_path):
    path = plots.plot_curves([arm('a', [0.5])], tmp_path / '1.png')
    assert count(read(path), (0x1A, 0x1A, 0x1A)) > 0


def test_eleven_arms_look_different():
    styles = plots._styles(plots.LIGHT)
    looks = [next(styles) for _ in range(12)]
    seen = {(s['color'], s['linestyle']) for s in looks}
    assert len(seen) == 12
    assert len({s['marker'] for s in looks[:12]}) == 12


def test_arms_of_different_length_and_with_gaps_are_drawn(tmp_path):
    arms = [arm('a', [0.1, 0.2, 0.3], [0.1, float('nan')]),
            Arm('b', tuple(Run('b', 'coco/bbox_mAP', ((step, 0.1), ))
                           for step in (1, 2)))]  # no step in common
    assert read(plots.plot_curves(arms, tmp_path / 'a.png')).size


def test_svg_of_equal_arms_is_equal(tmp_path):
    arms = [arm('<b> & "c"', [0.1, 0.3])]
    one, two = (plots.plot_curves(arms, tmp_path / name).read_text()
                for name in ('1.svg', '2.svg'))
    assert one == two
    assert one.lstrip().startswith('<?xml')


def test_curves_are_drawn_without_mmdet():
    code = ('import sys; sys.modules.update(mmdet=None, mmcv=None); '
            'import mmpsw.compare.plots')
    subprocess.run([sys.executable, '-c', code], check=True)

"""Pictures are looked at by their pixels."""
import mmcv
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import save_checkpoint
from mmengine.structures import InstanceData
from mmengine.utils import import_modules_from_strings

from mmpsw.compare import plots
from mmpsw.compare.runs import Arm, Run
from mmpsw.datasets.digits import generate

CLASSES = tuple('0123456789')


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


def test_curves_of_several_seeds_and_of_a_single_point(tmp_path):
    one = plots.plot_curves([arm('a', [0.5])], tmp_path / '1.png')
    assert count(read(one), (0, 0, 0)) > 0
    # The seeds' thin lines are beside the mean's strong one.
    far = [arm('a', [0.0, 0.0], [1.0, 1.0])]
    near = [arm('a', [0.5, 0.5], [0.5, 0.5])]
    dark = [
        (read(plots.plot_curves(arms, tmp_path / 'n.png')) < 180).all(-1).sum()
        for arms in (far, near)
    ]
    assert dark[0] > dark[1] + 1000



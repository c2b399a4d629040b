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


def test_boxes_are_drawn_where_they_are():
    image = np.full((64, 64, 3), 100, np.uint8)
    boxes = InstanceData(
        bboxes=torch.tensor([[16., 24., 48., 56.]]),
        labels=torch.tensor([7]),
        scores=torch.tensor([0.9]))
    green = (0, 200, 83)
    drawn = plots._draw_boxes(image, boxes, CLASSES, green)
    assert drawn.shape == (512, 512, 3)  # eightfold
    for x, y in ((128, 320), (384, 320), (256, 448)):
        around = drawn[y - 3:y + 4, x - 3:x + 4]
        assert count(around, green) > 0
    inside = drawn[210:430, 140:370]
    assert count(inside, (100, 100, 100)) == inside.shape[0] * inside.shape[1]
    # The label is above the box, and black on the box's colour.
    assert count(drawn[170:190, 128:180], green) > 200
    assert count(drawn[170:190, 128:180], (0, 0, 0)) > 10
    assert boxes.bboxes.tolist() == [[16, 24, 48, 56]]


def test_no_box_leaves_the_scene_as_it_is():
    image = np.full((64, 64, 3), 100, np.uint8)
    boxes = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    drawn = plots._draw_boxes(image, boxes, CLASSES, (0, 200, 83))
    assert count(drawn, (100, 100, 100)) == 512 * 512


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """A config of two small scenes, and an untrained detector for them."""
    folder = tmp_path_factory.mktemp('detector')
    generate(folder / 'digits', train=1, val=2, size=64, progress=False)
    config = Config.fromfile('configs/det/retinanet_r18_digits.py')
    root = f'{folder}/digits/det/'
    for loader in (config.val_dataloader, config.test_dataloader):
        loader.dataset.data_root = root
    # Untrained scores are about 0.01.
    config.model.test_cfg.score_thr = 0.0
    import_modules_from_strings(['mmdet.models'])
    checkpoint = folder / 'untrained.pth'
    save_checkpoint(
        dict(
            meta=dict(dataset_meta=dict(classes=CLASSES)),
            state_dict=MODELS.build(config.model).state_dict()),
        str(checkpoint))
    return config, checkpoint


@pytest.mark.parametrize(('score_thr', 'found'), [(0.0, True), (0.9, False)])
def test_detections_over_the_threshold_are_drawn(detector, tmp_path, score_thr,
                                                 found):
    config, checkpoint = detector
    path = plots.plot_detections(
        config, {'baseline': checkpoint}, tmp_path / 'd.png', scenes=(0, 1),
        score_thr=score_thr, title='title')
    picture = read(path)
    annotated, detected = np.array_split(picture, 2)
    assert count(annotated, (0, 200, 83)) > 500
    assert count(detected, (0, 200, 83)) == 0
    assert (count(detected, (255, 196, 0)) > 500) == found

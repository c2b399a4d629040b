"""Pictures with boxes are looked at by their pixels."""
import mmcv
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import save_checkpoint
from mmengine.structures import InstanceData
from mmengine.utils import import_modules_from_strings

from mmpsw.compare import detections
from mmpsw.datasets.digits import generate

CLASSES = tuple('0123456789')


def count(image, color):
    """How many pixels have a colour, about."""
    return (np.abs(image.astype(int) - color).max(axis=-1) < 6).sum()


def test_boxes_are_drawn_where_they_are():
    image = np.full((64, 64, 3), 100, np.uint8)
    boxes = InstanceData(
        bboxes=torch.tensor([[16., 24., 48., 56.]]),
        labels=torch.tensor([7]),
        scores=torch.tensor([0.9]))
    green = (0, 200, 83)
    drawn = detections._draw_boxes(image, boxes, CLASSES, green)
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
    drawn = detections._draw_boxes(image, boxes[:0], CLASSES, green)
    assert count(drawn, (100, 100, 100)) == 512 * 512


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """A config of two small scenes, and an untrained detector for them."""
    folder = tmp_path_factory.mktemp('detector')
    generate(folder / 'digits', train=1, val=2, size=64, progress=False)
    config = Config.fromfile('configs/study/retinanet_r18_digits.py')
    root = f'{folder}/digits/det/'
    for loader in (config.val_dataloader, config.test_dataloader):
        loader.dataset.data_root = root
    # Untrained scores are about 0.01.
    config.model.test_cfg.score_thr = 0.0
    import_modules_from_strings(['mmdet.models'])
    torch.manual_seed(0)
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
    path = detections.plot_detections(
        config, {'baseline': checkpoint}, tmp_path / 'd.png', scenes=(0, 1),
        score_thr=score_thr, title='title')
    one = mmcv.imread(detections.narrow(path))
    assert one.shape[0] > 1.8 * one.shape[1]  # an image above the other
    picture = mmcv.imread(path, channel_order='rgb')
    annotated, detected = np.array_split(picture, 2)
    assert count(annotated, (0, 200, 83)) > 500
    assert count(detected, (0, 200, 83)) == 0
    assert (count(detected, (255, 196, 0)) > 500) == found

"""Pictures with the boxes that detectors find; needs mmdet."""
import math
from collections.abc import Mapping, Sequence
from itertools import cycle, zip_longest
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from mmcv.ops import nms
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mmpsw.compare.plots import save

__all__ = ['narrow', 'plot_detections']

# Pixels of a panel in a picture: small scenes are enlarged to this, so that
# the boxes' labels can be read.
_PANEL = 480
_FONT_SIZE = 16
_BOX_COLORS = ((0, 200, 83), (255, 196, 0), (255, 109, 0), (3, 169, 244))


def plot_detections(config: Config,
                    checkpoints: Mapping[str, str | Path],
                    path: Path,
                    scenes: Sequence[int] = (0, 1, 2, 3),
                    score_thr: float = 0.3,
                    title: str = '') -> Path:
    """Draw what detectors find in the same validation images.

    A row for the annotations and one for each detector, a column for each
    image, and the same score threshold for all. Beside it, ``..._narrow``
    has the first image only: on a telephone its lettering can be read.

    Args:
        config: A mmdet config, its validation set in the COCO manner.
        checkpoints: The detectors' checkpoints by the name of their row.
        path: The PNG to write.
        scenes: The images' places in the validation set.
        score_thr: Boxes with a lower score are not drawn.
        title: Above the picture.
    """
    init_default_scope(config.get('default_scope', 'mmdet'))
    dataset = DATASETS.build(config.val_dataloader.dataset)
    infos = [dataset.get_data_info(i) for i in scenes]
    images = [mmcv.imread(info['img_path'], channel_order='rgb')
              for info in infos]
    rows = {'annotated': [_annotations(info) for info in infos]}
    rows |= {name: _detections(config, checkpoint, infos, score_thr)
             for name, checkpoint in checkpoints.items()}
    classes = dataset.metainfo['classes']
    drawn = {name: [_draw_boxes(image, boxes, classes, color)
                    for image, boxes in zip(images, row)]
             for (name, row), color in zip(rows.items(), cycle(_BOX_COLORS))}
    save(_figure({name: row[:1] for name, row in drawn.items()}, 3.5),
         narrow(path))
    return save(_figure(drawn, 2.6, title), path)


def narrow(path: Path) -> Path:
    """The file beside a picture for what is narrow."""
    return path.with_stem(f'{path.stem}_narrow')


def _figure(rows: Mapping[str, Sequence[np.ndarray]], size: float,
            title: str = '') -> Figure:
    """Images in rows that have a name, each ``size`` inches wide."""
    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(size * columns, (size + .05) * len(rows) + .4),
                    dpi=150, layout='constrained')
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, (name, images) in zip(grid, rows.items()):
        for axes, image in zip(axes_row, images):
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        axes_row[0].set_ylabel(name, fontsize=12, parse_math=False)
    figure.suptitle(title, x=0.01, ha='left', fontweight='bold')
    return figure


def _annotations(info: dict) -> InstanceData:
    instances = [i for i in info['instances'] if not i['ignore_flag']]
    return InstanceData(
        bboxes=torch.tensor([i['bbox'] for i in instances]).reshape(-1, 4),
        labels=torch.tensor([i['bbox_label'] for i in instances],
                            dtype=torch.long))


def _detections(config: Config, checkpoint: str | Path,
                infos: Sequence[dict],
                score_thr: float) -> list[InstanceData]:
    model = init_detector(config, str(checkpoint), palette='random',
                          device=get_device())
    samples = inference_detector(model, [info['img_path'] for info in infos])
    found = []
    for boxes in (sample.pred_instances.cpu() for sample in samples):
        boxes = boxes[boxes.scores >= score_thr]
        # One box for a place: detectors give a box for each likely class.
        _, keep = nms(boxes.bboxes, boxes.scores, iou_threshold=0.5)
        found.append(boxes[keep])
    return found


def _draw_boxes(image: np.ndarray, boxes: InstanceData,
                classes: Sequence[str], color: tuple) -> np.ndarray:
    """The (H, W, 3) RGB image, enlarged, with labelled boxes."""
    zoom = max(1, math.ceil(_PANEL / max(image.shape[:2])))
    image = cv2.resize(image, None, fx=zoom, fy=zoom,
                       interpolation=cv2.INTER_CUBIC)
    visualizer = DetLocalVisualizer(image=image)
    if len(boxes.labels):
        scores = [f' {score:.2f}' for score in boxes.get('scores', [])]
        labels = [f'{classes[label]}{score}' for label, score in zip_longest(
            boxes.labels, scores, fillvalue='')]
        corners = boxes.bboxes * zoom
        visualizer.draw_bboxes(corners, edge_colors=color, alpha=1,
                               line_widths=3)
        # Above the box, where they cover nothing of the object; not the
        # visualizer's own sizes, which are illegible on small objects.
        visualizer.draw_texts(
            labels, corners[:, :2].clamp(min=1.5 * _FONT_SIZE), colors='black',
            font_sizes=_FONT_SIZE, vertical_alignments='bottom',
            bboxes=dict(facecolor=[c / 255 for c in color], pad=1,
                        edgecolor='none'))
    return visualizer.get_image()

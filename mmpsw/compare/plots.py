"""Validation curves, and pictures with the boxes that detectors find."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mmcv.ops import nms
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mmpsw.compare import metrics
from mmpsw.compare.runs import Arm, check_comparable

# Okabe and Ito's colours, which the colour-blind can tell apart; markers and
# dashes say the same on a black-and-white print.
_STYLES = (
    dict(color='#000000', marker='o', linestyle='--'),
    dict(color='#D55E00', marker='s', linestyle='-'),
    dict(color='#0072B2', marker='^', linestyle=':'),
    dict(color='#009E73', marker='D', linestyle='-.'),
    dict(color='#CC79A7', marker='v', linestyle='-'),
    dict(color='#E69F00', marker='P', linestyle='--'),
    dict(color='#56B4E9', marker='X', linestyle=':'),
)
_GREY = '#666666'

# Pixels of a panel in a picture: small scenes are enlarged to this, so that
# the boxes' labels can be read.
_PANEL = 480
_FONT_SIZE = 16
_BOX_COLORS = ((0, 200, 83), (255, 196, 0), (255, 109, 0), (3, 169, 244))


def plot_curves(arms: Sequence[Arm],
                path: str | Path,
                title: str = '',
                note: str = '') -> Path:
    """Draw the validation metric of every arm over the training.

    The strong line is the mean over seeds; with several seeds a thin line
    shows each of them.

    Args:
        arms: The lines, in the legend's order.
        path: The PNG to write.
        title: Above the axes.
        note: A line below the title, in smaller type.

    Returns:
        ``path``.
    """
    check_comparable(arms)
    figure = Figure(figsize=(8, 5), dpi=150, layout='constrained')
    axes = figure.add_subplot()
    for arm, style in zip(arms, _cycle(_STYLES, len(arms)), strict=True):
        _draw_arm(axes, arm, style)
    run = arms[0].runs[0]
    better = 'higher' if run.higher_is_better else 'lower'
    axes.set_xlabel(run.unit)
    axes.set_ylabel(f'validation {run.metric} ({better} is better)')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(color='#DDDDDD', linewidth=0.8)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_title(title, loc='left', fontweight='bold', pad=24)
    axes.annotate(note, (0, 1), xytext=(0, 8), xycoords='axes fraction',
                  textcoords='offset points', color=_GREY)
    # Outside of the axes, where it cannot cover a curve.
    figure.legend(loc='outside lower center', ncols=4, handlelength=3.5,
                  frameon=False)
    return _save(figure, path)


def _draw_arm(axes: Axes, arm: Arm, style: Mapping[str, str]) -> None:
    for curve in arm.curves if len(arm.runs) > 1 else ():
        steps, values = zip(*curve, strict=True)
        axes.plot(steps, values, color=style['color'], linewidth=0.7,
                  alpha=0.4)
    steps, values = zip(*metrics.mean_curve(arm.curves), strict=True)
    axes.plot(steps, values, label=arm.name, linewidth=2, markersize=5,
              **style)


def plot_detections(config: str | Path | Config,
                    checkpoints: Mapping[str, str | Path],
                    path: str | Path,
                    scenes: Sequence[int] = (0, 1, 2, 3),
                    score_thr: float = 0.3,
                    title: str = '') -> Path:
    """Draw what detectors find in the same validation images.

    A row for the annotations and one for each detector, a column for each
    image, and the same score threshold for all.

    Args:
        config: A mmdet config, its validation set in the COCO manner.
        checkpoints: The detectors' checkpoints by the name of their row.
        path: The PNG to write.
        scenes: The images' places in the validation set.
        score_thr: Boxes with a lower score are not drawn.
        title: Above the picture.

    Returns:
        ``path``.
    """
    if not isinstance(config, Config):
        config = Config.fromfile(config)
    init_default_scope(config.get('default_scope', 'mmdet'))
    dataset = DATASETS.build(config.val_dataloader.dataset)
    infos = [dataset.get_data_info(i) for i in scenes]
    images = [mmcv.imread(info['img_path'], channel_order='rgb')
              for info in infos]
    classes = dataset.metainfo['classes']
    rows: dict[str, list[InstanceData]] = {
        'annotated': [_annotations(info) for info in infos]
    }
    for name, checkpoint in checkpoints.items():
        rows[name] = _detections(config, checkpoint, infos, score_thr)
    colors = _cycle(_BOX_COLORS, len(rows))
    panels = {}
    for (name, row), color in zip(rows.items(), colors, strict=True):
        panels[name] = [
            _draw_boxes(image, boxes, classes, color)
            for image, boxes in zip(images, row, strict=True)
        ]
    return _save(_grid(panels, title), path)


def _annotations(info: dict) -> InstanceData:
    instances = [i for i in info['instances'] if not i['ignore_flag']]
    return InstanceData(
        bboxes=torch.tensor([i['bbox'] for i in instances]).reshape(-1, 4),
        labels=torch.tensor([i['bbox_label'] for i in instances],
                            dtype=torch.long))


def _detections(config: Config, checkpoint: str | Path,
                infos: Sequence[dict],
                score_thr: float) -> list[InstanceData]:
    device = 'cuda:0' if torch.cuda.is_available() else 'cpu'
    model = init_detector(config, str(checkpoint), palette='random',
                          device=device)
    samples = inference_detector(model, [info['img_path'] for info in infos])
    found = [sample.pred_instances.cpu() for sample in samples]
    return [_best(boxes[boxes.scores >= score_thr]) for boxes in found]


def _best(boxes: InstanceData) -> InstanceData:
    """One box for a place: detectors give a box for each likely class."""
    _, keep = nms(boxes.bboxes, boxes.scores, iou_threshold=0.5)
    return boxes[keep]


def _draw_boxes(image: np.ndarray, boxes: InstanceData,
                classes: Sequence[str], color: tuple) -> np.ndarray:
    """The (H, W, 3) RGB image, enlarged, with labelled boxes."""
    zoom = max(1, math.ceil(_PANEL / max(image.shape[:2])))
    image = cv2.resize(image, None, fx=zoom, fy=zoom,
                       interpolation=cv2.INTER_CUBIC)
    corners = boxes.bboxes * zoom
    labels = [str(classes[label]) for label in boxes.labels]
    if 'scores' in boxes:
        labels = [f'{label} {score:.2f}' for label, score in zip(
            labels, boxes.scores, strict=True)]
    visualizer = DetLocalVisualizer(image=image)
    if labels:
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


def _grid(panels: Mapping[str, Sequence[np.ndarray]], title: str) -> Figure:
    columns = len(next(iter(panels.values())))
    figure = Figure(figsize=(2.6 * columns, 2.65 * len(panels) + 0.4),
                    dpi=150, layout='constrained')
    grid = figure.subplots(len(panels), columns, squeeze=False)
    for axes_row, (name, row) in zip(grid, panels.items(), strict=True):
        for axes, panel in zip(axes_row, row, strict=True):
            axes.imshow(panel)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        axes_row[0].set_ylabel(name, fontsize=12)
    figure.suptitle(title, x=0.01, ha='left', fontweight='bold')
    return figure


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A canvas of its own: no pyplot, no window, no global state.
    FigureCanvasAgg(figure)
    figure.savefig(path, format='png')
    return path


def _cycle(styles: Sequence, count: int) -> list:
    return [styles[i % len(styles)] for i in range(count)]

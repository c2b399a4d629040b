"""Twenty images of coloured rectangles, under COCO's names."""
import json
from pathlib import Path

import cv2
import numpy as np

# What makes a zoo's detector small, for --cfg-options.
RETINANET = [
    'model.backbone.depth=18', 'model.backbone.init_cfg=None',
    'model.backbone.base_channels=8', 'model.neck.in_channels=[8,16,32,64]',
    'model.neck.out_channels=16', 'model.bbox_head.in_channels=16',
    'model.bbox_head.feat_channels=16', 'model.bbox_head.stacked_convs=1',
    'train_dataloader.dataset.pipeline.2.scale=(96,96)',
    'val_dataloader.dataset.pipeline.1.scale=(96,96)']
RTMDET = [
    'model.backbone.init_cfg=None', 'model.backbone.widen_factor=0.0625',
    'model.neck.in_channels=[16,32,64]', 'model.neck.out_channels=16',
    'model.bbox_head.in_channels=16', 'model.bbox_head.feat_channels=16',
    'model.bbox_head.stacked_convs=1', 'train_dataloader.batch_size=2',
    'train_dataloader.pin_memory=False',
    'train_dataloader.dataset.pipeline.2.img_scale=(96,96)',
    'train_dataloader.dataset.pipeline.3.scale=(192,192)',
    'train_dataloader.dataset.pipeline.4.crop_size=(96,96)',
    'train_dataloader.dataset.pipeline.7.size=(96,96)',
    'train_dataloader.dataset.pipeline.8.img_scale=(96,96)',
    'val_dataloader.dataset.pipeline.1.scale=(96,96)',
    'val_dataloader.dataset.pipeline.2.size=(96,96)']
SMALL = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1',
         'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
         'default_hooks.logger.interval=1']


def generate(folder, images=20, size=64):
    """Writes ``folder`` as ``data/coco`` is."""
    from mmdet.datasets import CocoDataset
    random = np.random.default_rng(0)
    names = CocoDataset.METAINFO['classes']
    for part in ('train2017', 'val2017'):
        (Path(folder) / part).mkdir(parents=True)
        entries, annotations = [], []
        for number in range(images):
            image = random.integers(0, 60, (size, size, 3), np.uint8)
            x, y = random.integers(0, size // 2, 2).tolist()
            label = int(random.integers(0, 3))
            image[y:y + 32, x:x + 32, label] = 255
            name = f'{number:012d}.jpg'
            cv2.imwrite(str(Path(folder) / part / name), image)
            entries.append(dict(id=number, file_name=name, width=size,
                                height=size))
            annotations.append(dict(
                id=number, image_id=number, category_id=label + 1, area=1024,
                bbox=[x, y, 32, 32], iscrowd=0))
        path = Path(folder) / 'annotations' / f'instances_{part}.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(dict(
            images=entries, annotations=annotations, categories=[
                dict(id=index, name=name)
                for index, name in enumerate(names, start=1)])))

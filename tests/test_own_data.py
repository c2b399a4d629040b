"""configs/own_data, each config on data of its kind that is made here."""
import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import MMLogger
from PIL import Image

from mmpsw.commands import compare, train
from mmpsw.commands import test as test_command

CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'own_data'
LOADERS = [f'{phase}_dataloader.num_workers=0' for phase in ('train', 'val')]
TINY = dict(
    detection=[
        'model.test_cfg.score_thr=0.0',  # it has learned nothing
        'model.backbone.depth=18', 'model.neck.in_channels=[64,128,256,512]',
        'train_dataloader.dataset.pipeline.2.scale=(64,64)',
        'val_dataloader.dataset.pipeline.1.scale=(64,64)'],
    classification=['train_dataloader.batch_size=2'],
    segmentation=['model.backbone.base_channels=4',
                  'train_dataloader.batch_size=2',
                  'model.decode_head.in_channels=4',
                  'model.auxiliary_head.in_channels=8',
                  'model.data_preprocessor.size=(32,32)',
                  'train_dataloader.dataset.pipeline.2.scale=(32,32)',
                  'train_dataloader.dataset.pipeline.3.crop_size=(32,32)'])
LENGTH = dict.fromkeys(TINY, ['train_cfg.max_epochs=1'])
LENGTH['segmentation'] = ['train_cfg.max_iters=2', 'train_cfg.val_interval=1']


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('mmengine.device.utils.DEVICE', 'cpu')
    return tmp_path


def picture(path, values=256):
    path = Path('data/mine', path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (64, 64, 3) if values == 256 else (64, 64)
    pixels = np.random.default_rng(0).integers(values, size=shape)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def detection():
    """Four images of one box each, and one that has none."""
    boxes = [dict(id=i, image_id=i, category_id=i % 2, iscrowd=0, area=256,
                  bbox=[8, 8, 16, 16]) for i in range(4)]
    for part in ('train', 'val'):
        for i in range(5):
            picture(f'images/{part}{i}.jpg')
        Path(f'data/mine/{part}.json').write_text(json.dumps(dict(
            images=[dict(id=i, file_name=f'{part}{i}.jpg', width=64,
                         height=64) for i in range(5)],
            categories=[dict(id=0, name='cat'), dict(id=1, name='dog')],
            annotations=boxes)))


def classification():
    for part in ('train', 'val'):
        for name in ('cat/0', 'cat/1', 'dog/0', 'dog/1'):
            picture(f'{part}/{name}.jpg')


def segmentation():
    for part in ('train', 'val'):
        for i in range(4):
            picture(f'images/{part}/{i}.jpg')
            picture(f'maps/{part}/{i}.png', values=3)


def options(task):
    return ['--cfg-options', *LOADERS, *TINY[task], *LENGTH[task],
            *(['model.backbone.init_cfg=None'] if task == 'detection' else [])]


@pytest.mark.parametrize('task', TINY)
def test_each_config_trains_on_data_of_its_kind(task, folder):
    globals()[task]()
    MMLogger._instance_dict.clear()
    assert train.main([str(CONFIGS / f'{task}.py'), '--with', 'psw',
                       '--work-dir', 'run', *options(task)]) == 0
    log = next(Path('run').rglob('*.log')).read_text()
    said = dict(detection='bbox_mAP', classification='accuracy/top1',
                segmentation='mIoU')
    assert said[task] in log and 'psw/samples' in log


def test_from_my_folder_to_a_table(folder):
    classification()
    assert compare.main(['run', str(CONFIGS / 'classification.py'), '--arms',
                         'baseline', 'psw', *options('classification')]) == 0
    report = Path('work_dirs/compare_classification/report')
    assert '| psw' in (report / 'table.md').read_text()


def refused(task, capsys, *more):
    assert train.main([str(CONFIGS / f'{task}.py'), '--work-dir', 'run',
                       *options(task), *more]) == 2
    return capsys.readouterr().err.splitlines()[-1]


EMPTY_IS_KEPT = [f'{phase}_dataloader.dataset.filter_cfg.filter_empty_gt=False'
                 for phase in ('train', 'val')]


@pytest.mark.parametrize('phase', ['train', 'val'])
@pytest.mark.parametrize('names, found', [
    ('("cats","dogs")', 'only 0 of its 2 classes'),
    # mmdet would call the file's dog 0, which is the name of cats.
    ('("cats","dog")', 'only 1 of its 2 classes')])
def test_a_detector_whose_classes_are_not_the_files(
        phase, names, found, folder, capsys):
    """Where images without a box are kept it trained to the end, with mAP 0,
    or to an IndexError in the first validation."""
    detection()
    line = refused('detection', capsys, *EMPTY_IS_KEPT,
                   f'{phase}_dataloader.dataset.metainfo.classes={names}')
    assert line.startswith('error: the data set CocoDataset cannot be used, '
                           f'because its file has {found}: '
                           "metainfo.classes is 'cats', 'dog")
    assert f"of 'data/mine/{phase}.json' are 'cat', 'dog'" in line


def test_a_training_file_may_lack_the_last_classes(folder):
    """mmdet's labels are right then; a string is one class."""
    detection()
    path = Path('data/mine/train.json')
    held = json.loads(path.read_text())
    path.write_text(json.dumps(dict(
        held, categories=held['categories'][:1], annotations=[
            box for box in held['annotations'] if not box['category_id']])))
    assert train.main([str(CONFIGS / 'detection.py'), '--work-dir', 'run',
                       *options('detection')]) == 0
    one = 'metainfo.classes=cat'
    assert train.main([
        str(CONFIGS / 'detection.py'), '--work-dir', 'one',
        *options('detection'), 'model.bbox_head.num_classes=1',
        f'train_dataloader.dataset.{one}', f'val_dataloader.dataset.{one}',
    ]) == 0


def test_an_entry_without_a_key_that_mmdet_reads(folder, capsys):
    detection()
    path = Path('data/mine/train.json')
    content = json.loads(path.read_text())
    for box in content['annotations']:
        del box['area']
    path.write_text(json.dumps(content))
    assert "an entry lacks 'area'" in refused('detection', capsys)


def test_an_image_folder_without_an_object(folder, capsys):
    detection()
    path = Path('data/mine/val.json')
    path.write_text(json.dumps({**json.loads(path.read_text()),
                                'annotations': []}))
    assert 'because no image in it has an object' in refused(
        'detection', capsys)


def test_class_folders_that_count_differently(folder, capsys):
    classification()
    Path('data/mine/val/cat').rename('data/mine/val/eel')
    line = refused('classification', capsys)
    assert ("the class folder 'dog' has the label 1 in training and 0 in "
            'validation') in line
    assert "'data/mine/val' the same folders" in line


def test_class_folders_of_other_names_are_said(folder):
    classification()
    Path('data/mine/val/cat').rename('data/mine/val/Cat')
    assert train.main([str(CONFIGS / 'classification.py'), '--work-dir',
                       'run', *options('classification')]) == 0
    log = next(Path('run').rglob('*.log')).read_text()
    assert "the class folders 'Cat' of 'data/mine/val' are not in" in log


def test_a_wrong_suffix_of_label_maps(folder, capsys):
    segmentation()
    line = refused('segmentation', capsys, 'val_dataloader.dataset.'
                   'seg_map_suffix=_label.png')
    assert "0_label.png' does not exist" in line
    assert "seg_map_suffix is '_label.png'" in line
    assert "'data/mine/maps/val' holds files in '.png'" in line


class Mapped(LocalBackend):
    """As petrel's path_mapping."""

    def get(self, path):
        return super().get(str(path).replace('mine/maps', 'elsewhere'))


def test_label_maps_that_something_else_reads(folder, capsys):
    segmentation()
    Path('data/elsewhere').mkdir()
    for part in ('train', 'val'):
        Path(f'data/mine/maps/{part}').rename(f'data/elsewhere/{part}')
        Path(f'data/mine/maps/{part}').mkdir()
    assert "0.png' does not exist" in refused('segmentation', capsys)
    register_backend('mapped', Mapped, force=True)
    assert train.main([
        str(CONFIGS / 'segmentation.py'), '--work-dir', 'mapped',
        *options('segmentation'), *(
            f'{part}_dataloader.dataset.pipeline.1.backend_args.backend=mapped'
            for part in ('train', 'val'))]) == 0


def test_images_without_labels_are_tested(folder):
    segmentation()
    assert train.main([str(CONFIGS / 'segmentation.py'), '--work-dir', 'run',
                       *options('segmentation')]) == 0
    Path('mine.py').write_text(
        f"_base_ = '{CONFIGS / 'segmentation.py'}'\n"
        "pipeline = [dict(type='LoadImageFromFile'), "
        "dict(type='PackSegInputs')]\n"
        "test_dataloader = dict(num_workers=0, persistent_workers=False, "
        "dataset=dict(pipeline=pipeline, data_prefix=dict("
        "seg_map_path='nowhere')))\n"
        "test_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU'], "
        'format_only=True)]\n')
    Path('data/mine/nowhere').mkdir()
    assert test_command.main([
        'mine.py', 'run/iter_2.pth', '--out', 'maps', '--work-dir', 'test',
        '--cfg-options', *TINY['segmentation'][:1],
        *TINY['segmentation'][2:5]]) == 0
    assert len(list(Path('maps').glob('*.png'))) == 4


def test_a_label_that_no_loss_knows(folder, capsys):
    segmentation()
    for i in range(4):
        picture(f'maps/train/{i}.png', values=9)
    line = refused('segmentation', capsys)
    assert 'error: the label ' in line and 'below num_classes' in line
    assert "'data/mine/maps/train/" in line

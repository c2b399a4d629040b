"""Data that are not there, or do not fit: one line, and no false one."""
import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image

from mmpsw.commands import data, train
from mmpsw.commands import test as test_command

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
COCO = dict(type='CocoDataset', data_root='d/', ann_file='all.json',
            data_prefix=dict(img='img/'))


class Made(BaseDataset):
    """Somebody's own: it makes its files, or fetches them."""


def config(dataset, scope='mmdet', **more):
    return Config(dict(default_scope=scope, train_dataloader=dict(
        dataset=dataset), **more))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('dataset', [
    COCO,
    dict(COCO, type='mmdet.CocoDataset', backend_args=dict(backend='local')),
    dict(type='RepeatDataset', times=2, dataset=COCO),
])
def test_what_a_stock_data_set_lacks_in_the_file_system(dataset):
    with pytest.raises(FileNotFoundError) as info:
        data.check_data(config(dataset), 'train')
    assert "'d/all.json' and 'd/img/' do not exist" in str(info.value)


@pytest.mark.parametrize('settings', [
    dict(backend_args=dict(backend='lmdb', db_path='d.lmdb')),
    dict(backend_args=dict(backend='petrel', path_mapping={'d/': 's3://d/'})),
    dict(pipeline=[dict(type='LoadImageFromFile',
                        file_client_args=dict(backend='petrel'))]),
    dict(data_root='s3://d/'),
    dict(type=Made), dict(type='Made'), dict(type='NoSuchDataset'),
])
def test_what_something_else_holds_or_makes(settings):
    DATASETS.register_module('Made', module=Made, force=True)
    data.check_data(config({**COCO, **settings}), 'train')


def test_an_evaluators_file_behind_a_backend():
    evaluator = dict(type='CocoMetric', ann_file='d/all.json')
    with pytest.raises(FileNotFoundError, match="val_evaluator: 'd/all.json'"):
        data.check_data(config(Made, val_evaluator=evaluator), 'val')
    evaluator['backend_args'] = dict(backend='petrel')
    data.check_data(config(Made, val_evaluator=evaluator), 'val')


def write_coco(names, boxes=1):
    Path('d/img').mkdir(parents=True)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save('d/img/0.jpg')
    Path('d/all.json').write_text(json.dumps(dict(
        images=[dict(id=0, file_name='0.jpg', width=64, height=64)],
        categories=[dict(id=i, name=name) for i, name in enumerate(names)],
        annotations=[dict(id=i, image_id=0, category_id=i, iscrowd=0,
                          area=256, bbox=[8, 8, 16, 16])
                     for i in range(boxes)])))


def said(dataset):
    with pytest.raises(ValueError) as info, data.explained():
        DATASETS.build(dataset)
    assert '\n' not in str(info.value)
    return str(info.value)


def test_classes_that_are_not_the_files():
    write_coco(['cat', 'dog'])
    mine = dict(COCO, type='mmdet.CocoDataset', pipeline=[],
                metainfo=dict(classes=('cats', 'dogs')),
                filter_cfg=dict(filter_empty_gt=True))
    assert said(mine) == (
        'the data set CocoDataset cannot be used, because nothing is left in '
        "it to learn from: metainfo.classes is 'cats', 'dogs'; the categories "
        "of 'd/all.json' are 'cat', 'dog'; 'd/img/' holds files in '.jpg'; "
        "filter_cfg is {'filter_empty_gt': True}")


def test_a_file_that_is_no_json():
    write_coco(['cat'])
    Path('d/all.json').write_text('{"images": [')
    message = said(dict(COCO, type='mmdet.CocoDataset', pipeline=[],
                        metainfo=dict(classes=('cat', ))))
    assert 'because Expecting value: line 1' in message


def test_a_wrong_suffix():
    write_coco(['cat'])
    message = said(dict(type='mmseg.BaseSegDataset', img_suffix='.png',
                        data_root='d', data_prefix=dict(img_path='img'),
                        pipeline=[]))
    assert "img_suffix is '.png'" in message
    assert "'d/img' holds files in '.jpg'" in message
    assert 'mmpretrain' and "'.jpg', '.txt'" in said(dict(
        type='mmpretrain.CustomDataset', data_root=prepare_classes(),
        extensions=('.png', ), pipeline=[]))


def prepare_classes(names='ab'):
    for name in names:
        Path('classes', name).mkdir(parents=True)
        Path('classes', name, '0.jpg').touch()
        Path('classes', name, 'notes.txt').touch()
    return 'classes'


def test_folders_that_are_not_the_classes():
    message = said(dict(
        type='mmpretrain.CustomDataset', data_root=prepare_classes('abc'),
        metainfo=dict(classes=('a', 'b')), pipeline=[]))
    assert "number of subfolders (3) doesn't match" in message
    assert "metainfo.classes is 'a', 'b'" in message


def test_a_mistake_in_somebodys_own_class_keeps_its_traceback():

    class Wrong(BaseDataset):

        def load_data_list(self):
            raise RuntimeError('mine')

    with pytest.raises(RuntimeError, match='^mine$'), data.explained():
        Wrong()


def test_an_accuracy_among_more_classes_than_there_are():
    def checked(topk, classes=4):
        data.check_topk(Config(dict(
            model=dict(head=dict(num_classes=classes)),
            val_evaluator=dict(type='Accuracy', topk=topk))), 'val')

    for topk in ((1, 5), [1, 5], 5):
        with pytest.raises(ValueError, match='topk=.*has 4 classes; set'):
            checked(topk)
    checked((1, 4))
    checked((1, 5), classes=5)


def test_the_commands_say_it_in_one_line(data_folder, capsys):
    Path('data').symlink_to(data_folder / 'data')
    wrong = ['--cfg-options', *(f'{phase}_dataloader.dataset.extensions=(".x"'
                                ',)' for phase in ('train', 'test'))]
    path = str(CONFIGS / 'study' / 'resnet18_digits.py')
    assert train.main([path, '--work-dir', 'run', *wrong]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith('error: the data set CustomDataset cannot be used')
    assert "'data/digits/cls/train' holds files in '.png'" in line
    assert test_command.parse_args([path, 'a.pth']).checkpoint == 'a.pth'

"""What differs from the training whose number the zoo publishes."""
import copy

import pytest

from mmpsw import configs
from mmpsw.compare.published import differences

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco'
PSPNET = 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024'
RESNET = 'mmpretrain::resnet/resnet50_8xb32_in1k'
RTMDET = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco'


def found(name, processes, **settings):
    cfg = configs.load_config(name)
    cfg.merge_from_dict(settings)
    return differences(name, cfg, processes)


@pytest.mark.parametrize('name, processes', [
    (RETINANET, 8), (PSPNET, 4), (RESNET, 8), (RTMDET, 8)])
def test_nothing_differs_with_as_many_processes(name, processes):
    assert found(name, processes) == []


@pytest.mark.parametrize('name, processes, sentence', [
    (RETINANET, 1, 'The batch is 2 (2 x 1 processes); the published training '
     'has 16, and its learning rate is meant for that (--auto-scale-lr scales '
     'it).'),
    (PSPNET, 1, 'The batch is 2 (2 x 1 processes); the published training '
     'has 8, and its learning rate is meant for that.'),
])
def test_the_batch_counts_processes(name, processes, sentence):
    assert found(name, processes) == [sentence]


def test_accumulation_and_scaling_count():
    assert found(RETINANET, 2, **{
        'optim_wrapper.accumulative_counts': 4}) == [
            'optim_wrapper.accumulative_counts is 4; the published training '
            'has nothing.']
    assert found(RETINANET, 2, **{'auto_scale_lr.enable': True}) == [
        'The batch is 4 (2 x 2 processes); the published training has 16, and '
        'its learning rate is meant for that: it is scaled here, from '
        'a batch of 16.']
    assert 'from a batch of 16, which is another one.' in found(
        RTMDET, 8, **{'auto_scale_lr.enable': True})[0]


def test_each_difference_is_said():
    """Adam, rate 5, batch 1 and no schedule passed for the zoo's."""
    said = found(RETINANET, 1, **{
        'optim_wrapper.optimizer': dict(_delete_=True, type='Adam', lr=5),
        'param_scheduler': None, 'train_dataloader.batch_size': 1,
        'train_cfg.max_epochs': 3, 'model.backbone.depth': 18,
        'train_dataloader.dataset.indices': 20, 'load_from': 'mine.pth',
        'train_dataloader.dataset.data_root': '/elsewhere/'})
    assert said == [
        "optim_wrapper.optimizer.type is 'Adam'; the published training has "
        "'SGD'.",
        'optim_wrapper.optimizer.lr is 5; the published training has 0.01.',
        'optim_wrapper.optimizer.momentum is nothing; the published training '
        'has 0.9.',
        'optim_wrapper.optimizer.weight_decay is nothing; the published '
        'training has 0.0001.',
        'train_cfg.max_epochs is 3; the published training has 12.',
        'The schedule of the learning rate is none; the published training '
        'has LinearLR, MultiStepLR.',
        'The batch is 1 (1 x 1 processes); the published training has 16, and '
        'its learning rate is meant for that (--auto-scale-lr scales it).',
        "It begins with the weights of 'mine.pth'.",
        'The model differs from the published one in backbone.depth.',
        'It is trained on other data than the published one '
        '(train_dataloader.dataset: indices).']


def test_a_schedule_that_only_has_other_numbers():
    cfg = configs.load_config(RETINANET)
    scheduler = copy.deepcopy(cfg.param_scheduler)
    scheduler[1].milestones = [2, 3]
    assert found(RETINANET, 8, param_scheduler=scheduler) == [
        'The schedule of the learning rate differs from the published one in '
        'param_scheduler.1.milestones.']


def test_a_config_of_no_zoo_differs_from_none(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = '{RETINANET}.py'\nmodel = dict("
                    "bbox_head=dict(num_classes=3))\n")
    assert differences(str(path), configs.load_config(path), 8) == [
        'The model differs from the published one in bbox_head.num_classes.']
    path.write_text('a = 1\n')
    assert differences(str(path), configs.load_config(RETINANET)) == []

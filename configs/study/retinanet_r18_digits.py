# RetinaNet, small enough to learn the digits from scratch on two CPU cores.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/datasets/digits_detection.py',
]
model = dict(
    backbone=dict(
        depth=18,
        base_channels=16,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=64, num_outs=3),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        feat_channels=32,
        stacked_convs=2,
        # The levels share the head, and its norm.
        norm_cfg=dict(type='GN', num_groups=8),
        # Digits are 16 to 45 pixels high.
        anchor_generator=dict(octave_base_scale=2, strides=[8, 16, 32])))

optim_wrapper = dict(optimizer=dict(lr=0.04))
# The stock schedule, shortened to ten epochs and a warm-up of one.
train_cfg = dict(max_epochs=10)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=80),
    dict(
        type='MultiStepLR',
        begin=0,
        end=10,
        by_epoch=True,
        milestones=[7, 9],
        gamma=0.1)
]
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)

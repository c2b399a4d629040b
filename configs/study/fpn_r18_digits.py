# Semantic FPN, small enough to learn the digits from scratch on two CPU cores.
_base_ = [
    'mmseg::_base_/models/fpn_r50.py',
    'mmseg::_base_/schedules/schedule_20k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/datasets/digits_segmentation.py',
]
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    pretrained=None,
    backbone=dict(depth=18, base_channels=32, norm_cfg=norm_cfg),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    decode_head=dict(
        in_channels=[64, 64, 64, 64],
        channels=64,
        dropout_ratio=0,
        num_classes=11,
        norm_cfg=norm_cfg,
        # Nine pixels in ten are background.
        loss_decode=dict(class_weight=[0.2] + [1.0] * 10)))

# Twelve passes over the 640 scenes in batches of 8, each then validated.
epoch = 80
train_cfg = dict(max_iters=12 * epoch, val_interval=epoch)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.002, weight_decay=0.01))
param_scheduler = [
    dict(
        type='PolyLR',
        eta_min=1e-5,
        power=0.9,
        begin=0,
        end=12 * epoch,
        by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=epoch, max_keep_ckpts=2))
randomness = dict(seed=0)

# A UNet with an eighth of the channels at half the resolution, for two CPU
# cores.
_base_ = [
    'mmseg::_base_/models/fcn_unet_s5-d16.py',
    'mmseg::_base_/schedules/schedule_20k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/datasets/digits_segmentation.py',
]
norm_cfg = dict(type='BN', requires_grad=True)
# Nine pixels in ten are background.
class_weight = [0.1] + [1.0] * 10
model = dict(
    data_preprocessor=dict(
        size=(128, 128), test_cfg=dict(size_divisor=32)),
    backbone=dict(
        base_channels=8, strides=(2, 1, 1, 1, 1), norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=8,
        channels=16,
        num_classes=11,
        norm_cfg=norm_cfg,
        loss_decode=dict(class_weight=class_weight)),
    auxiliary_head=dict(
        in_channels=16,
        channels=16,
        num_classes=11,
        norm_cfg=norm_cfg,
        loss_decode=dict(class_weight=class_weight)),
    test_cfg=dict(_delete_=True, mode='whole'))

# Twenty passes over the 640 scenes in batches of 8, each then validated.
epoch = 80
train_cfg = dict(max_iters=20 * epoch, val_interval=epoch)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.003, weight_decay=0.01))
param_scheduler = [
    dict(
        type='PolyLR',
        eta_min=1e-4,
        power=0.9,
        begin=0,
        end=20 * epoch,
        by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=epoch, max_keep_ckpts=2))
randomness = dict(seed=0)

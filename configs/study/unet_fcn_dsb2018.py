# UNet with a quarter of the channels on nuclei, for two CPU cores.
_base_ = [
    'mmseg::_base_/models/fcn_unet_s5-d16.py',
    'mmseg::_base_/schedules/schedule_20k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/datasets/dsb2018_segmentation.py',
]
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(
        size=_base_.crop_size, test_cfg=dict(size_divisor=16)),
    backbone=dict(base_channels=16, norm_cfg=norm_cfg),
    decode_head=dict(in_channels=16, channels=16, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=32, channels=16, norm_cfg=norm_cfg),
    test_cfg=dict(_delete_=True, mode='whole'))

# Ten times the stock rate, at which eight passes learn nothing but that most
# is background.
optim_wrapper = dict(optimizer=dict(lr=0.1))
# Eight passes over the 458 images in batches of 8, each then validated.
epoch = 58
train_cfg = dict(max_iters=8 * epoch, val_interval=epoch)
param_scheduler = [
    dict(
        type='PolyLR',
        eta_min=1e-4,
        power=0.9,
        begin=0,
        end=8 * epoch,
        by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=epoch, max_keep_ckpts=2))
randomness = dict(seed=0)

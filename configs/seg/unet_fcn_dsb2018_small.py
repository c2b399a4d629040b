# An eighth of the stock channels and no workers, so that two CPU cores can
# train many: what the comparisons are made with.
_base_ = './unet_fcn_dsb2018.py'
model = dict(
    backbone=dict(base_channels=8),
    decode_head=dict(in_channels=8, channels=8),
    auxiliary_head=dict(in_channels=16, channels=8))
epoch = 58
train_cfg = dict(max_iters=10 * epoch)
param_scheduler = [
    dict(
        type='PolyLR',
        eta_min=1e-4,
        power=0.9,
        begin=0,
        end=10 * epoch,
        by_epoch=False)
]
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)

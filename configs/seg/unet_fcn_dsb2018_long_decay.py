# The stock decay, over 24 passes.
_base_ = './unet_fcn_dsb2018_long.py'
param_scheduler = [
    dict(
        type='PolyLR',
        eta_min=1e-4,
        power=0.9,
        begin=0,
        end=24 * 58,
        by_epoch=False)
]

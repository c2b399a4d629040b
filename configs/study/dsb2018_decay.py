# The stock decay, over 24 passes.
_base_ = './dsb2018_constant.py'
param_scheduler = [
    dict(
        type='PolyLR',
        eta_min=1e-4,
        power=0.9,
        begin=0,
        end=24 * 58,
        by_epoch=False)
]

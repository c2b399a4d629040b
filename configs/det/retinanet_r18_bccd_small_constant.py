# After the warm-up the learning rate stays as it is.
_base_ = './retinanet_r18_bccd_small.py'
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=52)
]

# After the warm-up the learning rate stays as it is.
_base_ = './retinanet_r18_digits.py'
train_cfg = dict(max_epochs=16)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=80)
]

# Long enough for a plateau: 24 epochs of 52 updates, at a constant rate after
# the warm-up.
_base_ = './bccd.py'
train_cfg = dict(max_epochs=24)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=52)
]

# Long enough for a plateau: 24 passes of 58 updates at a constant rate.
_base_ = './dsb2018.py'
train_cfg = dict(max_iters=24 * 58)
param_scheduler = None

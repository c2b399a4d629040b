# Long enough for a plateau: 24 passes of 58 updates at a constant rate.
_base_ = './unet_fcn_dsb2018_small_constant.py'
train_cfg = dict(max_iters=24 * 58)

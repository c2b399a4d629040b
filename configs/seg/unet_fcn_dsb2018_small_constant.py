# The learning rate stays as it is.
_base_ = './unet_fcn_dsb2018_small.py'
param_scheduler = None

# Long enough for a plateau: 24 epochs of 52 updates, at a constant rate after
# the warm-up.
_base_ = './retinanet_r18_bccd_small_constant.py'
train_cfg = dict(max_epochs=24)

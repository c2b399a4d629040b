# ResNet-18 for 32x32 images with a quarter of the channels, for two CPU cores.
_base_ = [
    'mmpretrain::_base_/models/resnet18_cifar.py',
    'mmpretrain::_base_/schedules/cifar10_bs128.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/digits_classification.py',
]
model = dict(
    backbone=dict(stem_channels=16, base_channels=16),
    head=dict(in_channels=128))
# Some 900 updates, before which it knows nothing.
train_cfg = dict(max_epochs=20)
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = dict(milestones=[14, 18])
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)

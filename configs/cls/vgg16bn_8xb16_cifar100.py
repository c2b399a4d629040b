# A baseline that mmpretrain lacks: its VGG-16 with BN, for 32x32 images. The
# five poolings leave 1x1x512, so one linear layer replaces the two of 4096.
# The schedule is mmpretrain's for CIFAR-100.
_base_ = [
    'mmpretrain::_base_/models/vgg16bn.py',
    'mmpretrain::_base_/datasets/cifar100_bs16.py',
    'mmpretrain::_base_/schedules/cifar10_bs128.py',
    'mmpretrain::_base_/default_runtime.py',
]
model = dict(
    backbone=dict(num_classes=-1),
    neck=dict(type='GlobalAveragePooling', _delete_=True),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=512))
optim_wrapper = dict(optimizer=dict(weight_decay=0.0005))
param_scheduler = dict(milestones=[60, 120, 160], gamma=0.2)

# A baseline that mmpretrain lacks: its VGG-16 with BN, for 32x32 images. The
# five poolings leave 1x1x512, so one linear layer replaces the two of 4096.
_base_ = [
    'mmpretrain::_base_/models/vgg16bn.py',
    'mmpretrain::_base_/datasets/cifar10_bs16.py',
    'mmpretrain::_base_/schedules/cifar10_bs128.py',
    'mmpretrain::_base_/default_runtime.py',
]
model = dict(
    backbone=dict(num_classes=-1),
    neck=dict(type='GlobalAveragePooling', _delete_=True),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=512))

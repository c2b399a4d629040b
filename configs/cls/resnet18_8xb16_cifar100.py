# A baseline that mmpretrain has for ResNet-50 only.
_base_ = 'mmpretrain::resnet/resnet50_8xb16_cifar100.py'
model = dict(backbone=dict(depth=18), head=dict(in_channels=512))

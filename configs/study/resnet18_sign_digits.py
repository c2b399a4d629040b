# ResNet-18 on photographs of 64x64 pixels.
_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/sign_digits_classification.py',
]
model = dict(head=dict(num_classes=10, topk=(1, )))
train_cfg = dict(max_epochs=10)
param_scheduler = dict(milestones=[6, 9])
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)

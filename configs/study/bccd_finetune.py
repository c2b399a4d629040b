# The backbone of the digits' detector, fine-tuned by the stock schedule, 1x,
# with its twelve epochs:
#   python tools/train.py configs/study/retinanet_r18_digits_constant.py
# trains it first.
_base_ = './bccd.py'
model = dict(
    backbone=dict(
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            prefix='backbone.',
            checkpoint='work_dirs/retinanet_r18_digits_constant/'
            'epoch_16.pth')))
train_cfg = dict(max_epochs=12)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=52),
    dict(
        type='MultiStepLR',
        begin=0,
        end=12,
        by_epoch=True,
        milestones=[8, 11],
        gamma=0.1)
]

# Narrow enough for two CPU cores to train orthogonal maps of all rows (288 at
# most), with OPT's schedule: 15 epochs of 44 updates, and a tenth of the rate
# at 40, 67 and 87 %. The last stage is left out.
_base_ = './sign_digits_constant.py'
model = dict(
    backbone=dict(
        stem_channels=8,
        base_channels=8,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2, )),
    head=dict(
        in_channels=32,
        loss=dict(
            _delete_=True,
            type='LabelSmoothLoss',
            label_smooth_val=0.01,
            mode='original')))
train_dataloader = dict(batch_size=32)
train_cfg = dict(max_epochs=15)
optim_wrapper = dict(
    optimizer=dict(lr=0.1, momentum=0.9, weight_decay=5e-4))
param_scheduler = [
    dict(type='MultiStepLR', milestones=[6, 10, 13], gamma=0.1, by_epoch=True)
]

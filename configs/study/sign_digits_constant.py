# Long enough for a plateau: 30 epochs of 87 updates at a constant rate. The
# validation and test images are validated together (674), so that a point is
# less than the noise.
_base_ = './sign_digits.py'
train_cfg = dict(max_epochs=30)
param_scheduler = None
train_dataloader = dict(batch_size=16)
sign_digits = dict(
    type='CustomDataset',
    data_root='data/sign_digits',
    with_label=True,
    pipeline=_base_.test_pipeline)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(data_prefix='val', **sign_digits),
            dict(data_prefix='test', **sign_digits)
        ]))

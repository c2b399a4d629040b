# The small ResNet-18 on hand signs with two decays of the rate, validated on
# the validation and test images together (674): what the arms here are
# compared on. It is over before 440 updates, so that the arms change their
# masks every four updates instead of every 40.
_base_ = './sign_digits.py'
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

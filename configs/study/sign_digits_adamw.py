# AdamW, at the rate of mmpretrain's schedules for it scaled to the batch,
# constant.
_base_ = './sign_digits_constant.py'
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True, type='AdamW', lr=0.001, weight_decay=0.05))

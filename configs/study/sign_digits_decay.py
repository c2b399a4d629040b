# The stock decay, a tenth at 30, 60 and 90 % of the run.
_base_ = './sign_digits_constant.py'
param_scheduler = dict(
    _delete_=True,
    type='MultiStepLR',
    by_epoch=True,
    milestones=[9, 18, 27],
    gamma=0.1)

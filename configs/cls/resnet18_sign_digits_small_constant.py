# The learning rate stays as it is.
_base_ = './resnet18_sign_digits_small.py'
param_scheduler = None

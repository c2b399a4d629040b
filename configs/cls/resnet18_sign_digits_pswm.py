_base_ = ['./resnet18_sign_digits.py', '../_base_/methods/pswm.py']
optim_wrapper = dict(type='mmpsw.PSWOptimWrapper', psw=_base_.psw)
custom_hooks = [dict(type='mmpsw.PSWHook')]

_base_ = ['./unet_fcn_dsb2018.py', '../_base_/methods/pswa.py']
optim_wrapper = dict(type='mmpsw.PSWOptimWrapper', psw=_base_.psw)
custom_hooks = [dict(type='mmpsw.PSWHook')]

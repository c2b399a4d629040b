_base_ = [
    'mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py',
    '../_base_/methods/psw.py',
]
optim_wrapper = dict(type='mmpsw.PSWOptimWrapper', psw=_base_.psw)
custom_hooks = [dict(type='mmpsw.PSWHook')]

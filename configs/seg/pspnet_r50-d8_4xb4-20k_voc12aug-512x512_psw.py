_base_ = [
    'mmseg::pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512.py',
    '../_base_/methods/psw.py',
]
optim_wrapper = dict(type='mmpsw.PSWOptimWrapper', psw=_base_.psw)
custom_hooks = [dict(type='mmpsw.PSWHook')]

_base_ = [
    'mmpretrain::vgg/vgg16bn_8xb32_in1k.py',
    '../_base_/methods/psw.py',
]
optim_wrapper = dict(type='mmpsw.PSWOptimWrapper', psw=_base_.psw)
custom_hooks = [dict(type='mmpsw.PSWHook')]

# The stock EMAHook, its first hook, makes room: one average is validated.
_base_ = [
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    '../_base_/methods/psw.py',
]
optim_wrapper = dict(type='mmpsw.PSWOptimWrapper', psw=_base_.psw)
custom_hooks = [dict(type='mmpsw.PSWHook'), *_base_.custom_hooks[1:]]

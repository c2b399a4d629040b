_base_ = ['./retinanet_r18_bccd.py', '../_base_/methods/pwalks.py']
optim_wrapper = dict(type='mmpsw.PSWOptimWrapper', psw=_base_.psw)
custom_hooks = [dict(type='mmpsw.PSWHook')]

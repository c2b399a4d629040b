# PSWA and PSWM: train the baseline --with pswa, --with pswm.
_base_ = ['./resnet18_8xb16_cifar100.py', '../_base_/methods/pwalks.py']
optim_wrapper = dict(type='mmpsw.PSWOptimWrapper', psw=_base_.psw)
custom_hooks = [dict(type='mmpsw.PSWHook')]

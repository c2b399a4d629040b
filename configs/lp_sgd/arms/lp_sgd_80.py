# LpSGD to 80 % zeros, in a short run.
_base_ = '../../_base_/methods/variants/lp_sgd_80.py'
custom_hooks = [
    dict(type='mmpsw.LpSGDHook'),
    dict(type='mmpsw.SparsityHook', target=0.8, interval=4)
]

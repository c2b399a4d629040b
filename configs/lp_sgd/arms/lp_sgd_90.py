# LpSGD to 90 % zeros, in a short run.
_base_ = '../../_base_/methods/lp_sgd.py'
custom_hooks = [
    dict(type='mmpsw.LpSGDHook'),
    dict(type='mmpsw.SparsityHook', target=0.9, interval=4)
]

# LpSGD to 50 % zeros, in a short run, in which few weights become small:
# more of them are dropped.
_base_ = '../../_base_/methods/variants/lp_sgd_50.py'
custom_hooks = [
    dict(type='mmpsw.LpSGDHook'),
    dict(type='mmpsw.SparsityHook', target=0.5, interval=4, fraction=0.5)
]

# LpSGD with the paper's settings for 80 % zeros.
_base_ = '../lp_sgd.py'
optim_wrapper = dict(optimizer=dict(p=[1.3, 1.3, 1.3, 1.3, 1.15]))
custom_hooks = [
    dict(type='mmpsw.LpSGDHook'),
    dict(type='mmpsw.SparsityHook', target=0.8)
]

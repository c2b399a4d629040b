# LpSGD with the paper's settings for 50 % zeros.
_base_ = '../lp_sgd.py'
optim_wrapper = dict(optimizer=dict(p=[1.4, 1.4, 1.4, 1.4, 1.3]))
custom_hooks = [
    dict(type='mmpsw.LpSGDHook'),
    dict(type='mmpsw.SparsityHook', target=0.5)
]

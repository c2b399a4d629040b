# LpSGD without masks, at the p of 80 % zeros: the sphere alone.
_base_ = './lp_sgd.py'
optim_wrapper = dict(optimizer=dict(p=[1.3, 1.3, 1.3, 1.3, 1.15]))
custom_hooks = [dict(type='mmpsw.LpSGDHook')]

# LpSGD with the authors' schedule of both rates, over the run's length.
_base_ = './lp_sgd.py'
param_scheduler = []
custom_hooks = [
    dict(type='mmpsw.LpSGDHook', schedule=True),
    dict(type='mmpsw.SparsityHook', target=0.9)
]

# PSWM: momentum * the previous period's mean + (1 - momentum) * this one's
# replaces the weights. momentum: [0, 1), 'sample' or 'polyak' (default 0.5).
# All keys: mmpsw/README.md, or help(mmpsw.PSWOptimWrapper).
psw = dict(type='PSWM', momentum=0.5)

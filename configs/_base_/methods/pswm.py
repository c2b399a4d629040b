# PSWM: each period's mean, into which the previous one counts as one sample
# more, replaces the weights. momentum: [0, 1), 'sample' (the default) or
# 'polyak'. All keys: mmpsw/engine/averaging/README.md.
psw = dict(type='PSWM')

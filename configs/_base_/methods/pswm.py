# PSWM: each period's mean, into which the previous one counts as one sample
# more, replaces the weights. momentum: [0, 1), 'sample' (the default),
# 'polyak' or 'ahead'. All keys: mmpsw/README.md.
psw = dict(type='PSWM')

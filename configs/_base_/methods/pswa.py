# PSWA: the mean over the whole period replaces the weights at its end.
# All keys: mmpsw/README.md, or help(mmpsw.PSWOptimWrapper).
psw = dict(type='PSWA')

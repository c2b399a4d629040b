# PSWA: the mean over the whole period replaces the weights at its end.
# All keys: mmpsw/engine/averaging/README.md.
psw = dict(type='PSWA')

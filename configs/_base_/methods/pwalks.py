# PWALKS: the mean over the last updates of a period replaces the weights.
# last: a share of the period in (0, 1], or a number of updates (required).
# All keys: mmpsw/engine/averaging/README.md.
psw = dict(type='PWALKS', last=0.25)

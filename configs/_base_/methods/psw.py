# What we recommend to begin with: each epoch's mean, in which later updates
# count more, is validated and saved; training goes on from the live weights.
# Why, and where writing it back pays: configs/README.md.
psw = dict(type='PSWA', weighting='linear', write_back=False)

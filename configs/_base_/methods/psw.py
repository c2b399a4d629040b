# What we recommend to begin with, which configs/README.md says why, and where
# more pays: the mean of each epoch's weights is validated and saved, and
# training goes on from the live weights.
psw = dict(type='PSWA', write_back=False)

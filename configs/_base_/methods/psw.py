# What we recommend: the mean of each epoch's weights is validated and saved,
# and training goes on from the live weights. Where more pays:
# configs/README.md.
psw = dict(type='PSWA', write_back=False)

# What we recommend: the mean of each epoch's weights is validated and saved,
# and training continues from the live weights. All keys:
# mmpsw/engine/averaging/README.md.
psw = dict(type='PSWA', write_back=False)

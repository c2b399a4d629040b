# Going on after a finished schedule: a constant share of the config's own rate
# (factor), and the mean of each epoch's weights, as psw has it. Begin with the
# finished weights: --from-zoo, or load_from.
param_scheduler = [
    dict(type='ConstantLR', factor=0.3, by_epoch=False, end=10**9)
]
psw = dict(type='PSWA', write_back=False)

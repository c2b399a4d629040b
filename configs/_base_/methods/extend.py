# Training that continues after a finished schedule, at a constant share of the
# config's own rate (factor), with psw. Begin with the finished weights:
# --from-zoo, or load_from.
param_scheduler = [
    dict(type='ConstantLR', factor=0.3, by_epoch=False, end=10**9)
]
psw = dict(type='PSWA', write_back=False)

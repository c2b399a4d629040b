# PSWA four times an epoch of sign_digits, which has 44 updates: the weights
# are set back by six of them instead of by 22.
psw = dict(type='PSWA', by_epoch=False, period=11)

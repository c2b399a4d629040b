# PSWA from the second third of ten epochs on, when the weights have stopped
# to travel far.
psw = dict(type='PSWA', begin=3)

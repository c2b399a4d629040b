# The mean of every two epochs. A validation in the middle of a period sees
# that of the last whole period.
psw = dict(type='PSWA', period=2, write_back=False)

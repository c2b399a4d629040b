# The control arm, with later samples counting more.
psw = dict(type='PSWA', weighting='linear', write_back=False)

# PSWA, with later samples counting more.
psw = dict(type='PSWA', weighting='linear')

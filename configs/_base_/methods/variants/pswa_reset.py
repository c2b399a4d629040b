# PSWA, with the optimizer's momentum set to zero at each resampling.
psw = dict(type='PSWA', optimizer_state='reset')

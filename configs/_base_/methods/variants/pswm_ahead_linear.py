# The same, with later samples counting more.
psw = dict(type='PSWM', momentum='ahead', weighting='linear')

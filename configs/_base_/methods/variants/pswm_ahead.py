# A step beyond each period's mean, which undoes its lag.
psw = dict(type='PSWM', momentum='ahead')

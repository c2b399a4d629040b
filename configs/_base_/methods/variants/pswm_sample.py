# PSWM whose stored mean counts as one more sample of the next period, as claim
# 2 of the patent has it.
psw = dict(type='PSWM', momentum='sample')

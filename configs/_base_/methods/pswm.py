# PSWM: momentum * the previous period's mean + (1 - momentum) * this one's
# replaces the weights. momentum: [0, 1), 'sample' or 'polyak' (default 0.5).
#
# Further keys, with their defaults:
#   last=None                 the whole period; or as in PWALKS
#   period=1, by_epoch=True   epochs (or iterations) between resamplings
#   begin=0, end=None         resample within [begin, end) only, same unit
#   sample_prob=1.0, seed=0   which share of the updates is sampled
#   buffers='average'         batch norm: 'average', 'keep', 'recalibrate'
#   optimizer_state='keep'    'keep' or 'reset' (momentum, Adam's moments)
#   write_back=True           False: average to evaluate and save only
psw = dict(type='PSWM', momentum=0.5)

# PSWA: the mean over the whole period replaces the weights at its end.
#
# Further keys, with their defaults:
#   period=1, by_epoch=True   epochs (or iterations) between resamplings
#   begin=0, end=None         resample within [begin, end) only, same unit
#   sample_prob=1.0, seed=0   which share of the updates is sampled
#   buffers='average'         batch norm: 'average', 'keep', 'recalibrate'
#   optimizer_state='keep'    'keep' or 'reset' (momentum, Adam's moments)
#   write_back=True           False: average to evaluate and save only
psw = dict(type='PSWA')

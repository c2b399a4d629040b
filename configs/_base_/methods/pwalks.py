# PWALKS: the mean over the last updates of a period replaces the weights.
# last: a share of the period in (0, 1], or a number of updates (required).
#
# Further keys, with their defaults:
#   period=1, by_epoch=True   epochs (or iterations) between resamplings
#   begin=0, end=None         resample within [begin, end) only, same unit
#   sample_prob=1.0, seed=0   which share of the updates is sampled
#   buffers='average'         batch norm: 'average', 'keep', 'recalibrate'
#   optimizer_state='keep'    'keep' or 'reset' (momentum, Adam's moments)
#   write_back=True           False: average to evaluate and save only
psw = dict(type='PWALKS', last=0.25)

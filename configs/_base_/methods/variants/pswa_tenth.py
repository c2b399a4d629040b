# One update in ten is sampled, at random.
psw = dict(type='PSWA', sample_prob=0.1)

# One update in ten is sampled, at random.
psw = dict(type='PSWA', write_back=False, sample_prob=0.1)

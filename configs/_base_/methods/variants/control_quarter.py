# One update in four is sampled, at random.
psw = dict(type='PSWA', write_back=False, sample_prob=0.25)

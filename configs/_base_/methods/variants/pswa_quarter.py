# One update in four is sampled, at random.
psw = dict(type='PSWA', sample_prob=0.25)

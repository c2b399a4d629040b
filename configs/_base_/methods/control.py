# PSWA's epoch mean, validated and saved but never written back: what the
# averaging alone does.
psw = dict(type='PSWA', write_back=False)

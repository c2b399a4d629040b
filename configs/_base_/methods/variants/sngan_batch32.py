# SNGAN's five minibatches where a config has batches of 32.
_base_ = ['../sngan.py']
train_dataloader = dict(batch_size=5 * 32)

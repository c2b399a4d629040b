# Three training labels in ten are replaced at random; the others are right.
_base_ = './sign_digits_constant.py'
train_dataloader = dict(dataset=dict(type='mmpsw.NoisyLabels', noise=0.3))

# Three training labels in ten are replaced at random; the others are right.
_base_ = './resnet18_sign_digits_long.py'
train_dataloader = dict(dataset=dict(type='mmpsw.NoisyLabels', noise=0.3))

# One training label in five is replaced at random; the validation's are right.
_base_ = './resnet18_sign_digits_small.py'
train_dataloader = dict(dataset=dict(type='mmpsw.NoisyLabels', noise=0.2))

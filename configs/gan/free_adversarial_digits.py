# scikit-learn's handwritten digits, inked in colours, at 32x32 pixels.
#   python tools/make_digits.py
#   python tools/train.py configs/study/resnet18_digits.py --seed 0
# write the data, and train the classifier by whose features it is measured.
_base_ = ['./free_adversarial_sign_digits.py']
data_root = 'data/digits/cls'
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        # No flip: a mirrored digit is no digit.
        pipeline=[dict(type='LoadImageFromFile'),
                  dict(type='PackInputs')]))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root, data_prefix='val'))
val_evaluator = dict(
    features=dict(
        name='digits',
        config='configs/study/resnet18_digits.py',
        checkpoint='work_dirs/resnet18_digits/epoch_20.pth'))
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best='digits/frechet'))

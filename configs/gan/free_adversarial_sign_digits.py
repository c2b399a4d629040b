# Photographs of hands, 32x32 pixels, with an eighth of the published width,
# half of the batch and a larger rate: minutes on a CPU core.
#   python tools/train.py configs/study/sign_digits.py --seed 0
# trains the classifier first, by whose features images are measured.
_base_ = ['../_base_/gan.py']
model = dict(generator=dict(width=16), discriminator=dict(width=16))
optim_wrapper = dict(
    discriminator=dict(optimizer=dict(lr=1e-3)),
    generator=dict(optimizer=dict(lr=1e-3)))
dataset_type = 'CustomDataset'
data_root = 'data/sign_digits'
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix='train',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=32),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs')
        ]))
# Measured against the training images, as FID is; the test is against others.
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix='train',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=32),
            dict(type='PackInputs')
        ]))
test_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix='test',
        pipeline=val_dataloader['dataset']['pipeline']))
val_evaluator = dict(
    type='mmpsw.GeneratedImages',
    features=dict(
        type='mmpsw.ClassifierFeatures',
        name='sign_digits',
        config='configs/study/sign_digits.py',
        checkpoint='work_dirs/sign_digits/epoch_10.pth'))
test_evaluator = val_evaluator
# Longer, or with another decay, it gets worse again: README.md here.
param_scheduler = [
    dict(type='ExponentialLR', gamma=0.5**(1 / 1000), by_epoch=False)
]
train_cfg = dict(max_iters=750, val_interval=250)
default_hooks = dict(
    checkpoint=dict(
        interval=250, save_best='sign_digits/frechet', rule='less'))
randomness = dict(seed=0)

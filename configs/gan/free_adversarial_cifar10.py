# FastGAN's published setting, for a GPU. FID is against the training images,
# as it is published; it needs torch-fidelity, which fetches Inception's
# weights. mmpretrain fetches CIFAR-10.
_base_ = ['../_base_/gan.py']
train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CIFAR10',
        data_root='data/cifar10',
        split='train',
        pipeline=[
            dict(
                type='RandomResizedCrop',
                scale=32,
                crop_ratio_range=(0.8, 1.),
                aspect_ratio_range=(1., 1.)),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs')
        ]))
val_dataloader = dict(
    batch_size=100,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CIFAR10',
        data_root='data/cifar10',
        split='train',
        pipeline=[dict(type='PackInputs')]))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='mmpsw.GeneratedImages',
    features=dict(type='mmpsw.InceptionFeatures'))
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best='inception/FID', rule='less'))

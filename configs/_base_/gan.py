# A class-conditional GAN of 32x32 pixels with free adversarial training, at
# the published setting (arXiv 2008.03364). Iterations are steps of the
# generator. A leaf gives the data, and num_classes where they are not ten.
_base_ = ['mmpretrain::_base_/default_runtime.py']
custom_imports = dict(imports=['mmpsw.engine'], allow_failed_imports=False)
data_preprocessor = dict(
    type='ClsDataPreprocessor',
    mean=[127.5, 127.5, 127.5],
    std=[127.5, 127.5, 127.5],
    to_rgb=True)
model = dict(
    type='mmpsw.FreeAdversarialGAN',
    generator=dict(
        type='mmpsw.ResidualGenerator',
        image_size=32,
        num_classes=10,
        width=128),
    discriminator=dict(
        type='mmpsw.ResidualDiscriminator',
        image_size=32,
        num_classes=10,
        width=128),
    epsilon=0.006,
    replays=2)
optim_wrapper = dict(
    constructor='mmpsw.GANOptimWrapperConstructor',
    # --with pswa, pwalks, pswm or psw averages only this one.
    averaged=['generator'],
    discriminator=dict(
        optimizer=dict(type='Adam', lr=2e-4, betas=(0., 0.9))),
    generator=dict(optimizer=dict(type='Adam', lr=2e-4, betas=(0., 0.9))))
param_scheduler = [
    dict(type='ExponentialLR', gamma=0.5**(1 / 80_000), by_epoch=False)
]
train_cfg = dict(by_epoch=False, max_iters=240_000, val_interval=10_000)
val_cfg = dict()
test_cfg = dict()
# Each player is wrapped by itself, where several processes train.
model_wrapper_cfg = dict(
    type='MMSeparateDistributedDataParallel', broadcast_buffers=False)
custom_hooks = [dict(type='mmpsw.GANHook')]
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=10_000, max_keep_ckpts=2))
log_processor = dict(by_epoch=False)

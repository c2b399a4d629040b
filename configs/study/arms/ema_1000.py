# mmengine's EMAHook, whose average looks back over 1000 updates.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExponentialMovingAverage',
        momentum=0.001,
        update_buffers=True)
]

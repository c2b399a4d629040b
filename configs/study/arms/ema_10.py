# mmengine's EMAHook, whose average looks back over 10 updates.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExponentialMovingAverage',
        momentum=0.1,
        update_buffers=True)
]

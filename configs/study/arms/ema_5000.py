# mmengine's EMAHook, whose average looks back over 5000 updates.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExponentialMovingAverage',
        momentum=0.0002,
        update_buffers=True)
]

# mmengine's EMAHook, whose average looks back over 200 updates.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExponentialMovingAverage',
        momentum=0.005,
        update_buffers=True)
]

# mmengine's EMAHook, whose average looks back over 50 updates.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExponentialMovingAverage',
        momentum=0.02,
        update_buffers=True)
]

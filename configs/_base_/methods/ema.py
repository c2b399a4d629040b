# mmengine's exponential moving average, validated and saved. Its default
# momentum, 0.0002, looks back over 5000 updates; this one over 50, about an
# epoch of a small data set. Buffers are averaged as PSW averages them.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExponentialMovingAverage',
        momentum=0.02,
        update_buffers=True)
]

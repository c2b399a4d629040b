# SWA (arXiv 1803.05407): the mean of the epoch ends of the last quarter.
# The learning rate is the config's own.
custom_hooks = [
    dict(
        type='mmpsw.EpochAverageHook',
        ema_type='StochasticWeightAverage',
        begin=0.75,
        update_buffers=True)
]

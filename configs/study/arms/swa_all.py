# The mean of all epoch ends, for a run that only goes on from a trained model.
custom_hooks = [
    dict(
        type='mmpsw.EpochAverageHook',
        ema_type='StochasticWeightAverage',
        begin=0.,
        update_buffers=True)
]

# LAWA (arXiv 2209.14981): the mean of the last five epoch ends.
custom_hooks = [
    dict(
        type='mmpsw.EpochAverageHook',
        ema_type='mmpsw.LatestWeightAverage',
        last=5)
]

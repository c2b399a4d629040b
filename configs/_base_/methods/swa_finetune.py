# SWA after a finished schedule (Zhang et al., arXiv 2012.12645): in each epoch
# the rate falls along a cosine from the config's own to a hundredth, and the
# mean of the epoch ends is validated. Begin with the finished weights:
# --from-zoo, or load_from; the paper trains 12 epochs more.
param_scheduler = [
    dict(
        type='CosineRestartLR',
        periods=[1] * 1000,
        restart_weights=[1] * 1000,
        end=1000,
        eta_min_ratio=0.01,
        by_epoch=True,
        convert_to_iter_based=True)
]
custom_hooks = [
    dict(
        type='mmpsw.EpochAverageHook',
        ema_type='StochasticWeightAverage',
        update_buffers=True)
]

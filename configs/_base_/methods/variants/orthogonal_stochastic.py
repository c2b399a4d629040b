# S-OPT: all layers but the first turn a quarter of their rows at a time, for
# two epochs of the small comparison (the paper: 750 updates of 300,000).
custom_hooks = [
    dict(
        type='mmpsw.OrthogonalHook',
        map='gram_schmidt',
        stochastic=True,
        period=44)
]

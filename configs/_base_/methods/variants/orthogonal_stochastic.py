# S-OPT: all layers but the first turn a quarter of their rows at a time, and
# draw others every 750 updates, as the paper's.
custom_hooks = [
    dict(type='mmpsw.OrthogonalHook', map='gram_schmidt', stochastic=True)
]

# Magnitude pruning of each layer by itself, to 50 % zeros.
custom_hooks = [
    dict(type='mmpsw.MagnitudePruningHook', target=0.5, per_layer=True)
]

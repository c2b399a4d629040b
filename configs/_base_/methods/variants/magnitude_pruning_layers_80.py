# Magnitude pruning of each layer by itself, to 80 % zeros.
custom_hooks = [
    dict(type='mmpsw.MagnitudePruningHook', target=0.8, per_layer=True)
]

# Magnitude pruning of each layer by itself, to 90 % zeros.
custom_hooks = [
    dict(type='mmpsw.MagnitudePruningHook', target=0.9, per_layer=True)
]

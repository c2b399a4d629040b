# Magnitude pruning to 80 % zeros.
custom_hooks = [dict(type='mmpsw.MagnitudePruningHook', target=0.8)]

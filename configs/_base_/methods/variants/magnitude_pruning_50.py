# Magnitude pruning to 50 % zeros.
custom_hooks = [dict(type='mmpsw.MagnitudePruningHook', target=0.5)]

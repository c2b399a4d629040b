# Pruning of activation gradients at the rate 0.99.
custom_hooks = [dict(type='mmpsw.GradientPruningHook', rate=0.99)]

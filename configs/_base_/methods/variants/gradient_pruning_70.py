# Pruning of activation gradients at the rate 0.7.
custom_hooks = [dict(type='mmpsw.GradientPruningHook', rate=0.7)]

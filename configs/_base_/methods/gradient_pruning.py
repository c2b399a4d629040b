# Pruning of activation gradients (arXiv 1908.00173, reconstructed): small ones
# become zero or larger, at random and without bias.
# rate: the share of normal gradients below tau, in [0, 1); fewer become zero.
# All keys: help(mmpsw.engine.GradientPruningHook).
custom_hooks = [dict(type='mmpsw.GradientPruningHook', rate=0.9)]

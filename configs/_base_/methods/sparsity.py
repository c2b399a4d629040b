# The masks of lp_sgd with the config's own optimizer, until 90 % of the
# weights are zero.
custom_hooks = [dict(type='mmpsw.SparsityHook', target=0.9)]

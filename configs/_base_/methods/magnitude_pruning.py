# Magnitude pruning (torch.nn.utils.prune) of all layers together, once, after
# half of the run; the other half is the fine-tuning.
custom_hooks = [dict(type='mmpsw.MagnitudePruningHook', target=0.9)]

# Switch EMA (arXiv 2402.09240): the same moving average, from which training
# continues after each epoch.
custom_hooks = [
    dict(type='mmpsw.SwitchEMAHook', momentum=0.02, update_buffers=True)
]

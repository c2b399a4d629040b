# Schedule-Free AdamW (arXiv 2405.15682; pip install schedulefree), for configs
# without a schedule.
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True,
        type='mmpsw.AdamWScheduleFree',
        lr=0.0025,
        weight_decay=0.05,
        warmup_steps=50))
custom_hooks = [dict(type='mmpsw.ScheduleFreeHook')]

# Schedule-Free SGD (arXiv 2405.15682; pip install schedulefree), for configs
# without a schedule. The rate is ten times that of SGD with a momentum of 0.9.
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True,
        type='mmpsw.SGDScheduleFree',
        lr=1.0,
        momentum=0.9,
        weight_decay=1e-4,
        warmup_steps=50))
custom_hooks = [dict(type='mmpsw.ScheduleFreeHook')]

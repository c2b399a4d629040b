# LpSGD (arXiv 2103.16013): each filter that a normalisation follows on the
# unit Lp sphere, and masks until 90 % of the weights are zero. p is 1.2 in the
# first four layers and 1.07 in the others. lr is the rate of everything else,
# sphere_lr that of the sphere; the config's schedule scales both alike.
# All keys: configs/lp_sgd/README.md.
optim_wrapper = dict(
    constructor='mmpsw.LpSGDConstructor',
    optimizer=dict(
        _delete_=True,
        type='mmpsw.LpSGD',
        lr=0.1,
        sphere_lr=0.0078,
        p=[1.2, 1.2, 1.2, 1.2, 1.07],
        momentum=0.9,
        nesterov=True,
        weight_decay=0.))
custom_hooks = [
    dict(type='mmpsw.LpSGDHook'),
    dict(type='mmpsw.SparsityHook', target=0.9)
]

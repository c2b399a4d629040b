# A GAN of configs/gan/ as SAGAN trains it (arXiv 1805.08318): spectral norm
# and self-attention in both networks, projection, two rates, and no decay.
model = dict(
    epsilon=0.,
    replays=1,
    generator=dict(spectral_norm=True, attention=True),
    discriminator=dict(head='projection', spectral_norm=True, attention=True))
optim_wrapper = dict(
    discriminator=dict(optimizer=dict(lr=4e-4)),
    generator=dict(optimizer=dict(lr=1e-4)))
param_scheduler = []

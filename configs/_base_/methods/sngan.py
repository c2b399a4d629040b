# A GAN of configs/gan/ as SNGAN trains it (arXiv 1802.05957), FastGAN's
# published baseline: spectral norm, projection, five minibatches of 64 for
# the discriminator before a step of the generator, and no decay.
model = dict(
    epsilon=0.,
    replays=1,
    discriminator_steps=5,
    discriminator=dict(head='projection', spectral_norm=True))
train_dataloader = dict(batch_size=5 * 64)
param_scheduler = []

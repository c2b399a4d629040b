# A GAN of configs/gan/ with Rob-GAN's perturbation (arXiv 1807.10454): 3 steps
# of projected gradient descent on each minibatch, five minibatches of 64 for a
# step of the generator, and no decay. The hinge loss stays, where Rob-GAN has
# a cross entropy.
model = dict(
    epsilon=0.006,
    tau=0.002,
    replays=1,
    pgd_steps=3,
    discriminator_steps=5,
    class_weights=dict(fake=0.))
train_dataloader = dict(batch_size=5 * 64)
param_scheduler = []

# A GAN of configs/gan/ without the perturbation, with as many steps of the
# discriminator: what free adversarial training alone adds is the difference.
model = dict(epsilon=0.)

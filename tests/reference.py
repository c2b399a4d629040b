"""The slow, obvious version that the fast core is tested against.

It keeps every sample of a period in float64, and computes the statistic from
the definition when the period ends.
"""
import torch


def assert_equal(one, other):
    """Of two models, or their states: the same names and the same bits.

    On whatever device: what is saved lies on a CPU.
    """
    if isinstance(one, torch.nn.Module):
        one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value.cpu(), other[name].cpu()), name


def statistics(**tensors):
    """A layer that holds them, as PeriodicResampler's ``statistics``."""
    layer = torch.nn.Module()
    for name, tensor in tensors.items():
        layer.register_buffer(name, tensor)
    return {name: (layer, name) for name in tensors}


class Reference:
    """Keeps all samples of a list of tensors.

    ``updates`` is T, ``window`` is L; ``draw`` decides about each sample.
    """

    def __init__(self, updates, window, momentum=None, draw=lambda: True,
                 weighting='uniform'):
        self.updates = updates
        self.window = window
        self.momentum = momentum
        self.draw = draw
        self.weighting = weighting
        self.count = 0
        self.period = 0
        self.samples = []
        self.previous = None

    def step(self, tensors):
        """What to write back (float64), or None while the period goes on."""
        self.count += 1
        if self.count > self.updates - self.window and self.draw():
            # double() alone would alias float64 weights
            self.samples.append([t.detach().double().clone() for t in tensors])
        if self.count < self.updates:
            return None
        self.count = 0
        samples, self.samples = self.samples, []
        if not samples:
            return None
        weights = [1.] * len(samples)
        if self.weighting == 'linear':
            weights = [i + 1. for i in range(len(samples))]
        mean = [
            sum(c * w for c, w in zip(weights, column)) / sum(weights)
            for column in zip(*samples)
        ]
        if self.previous is not None and self.momentum is not None:
            beta = self.beta(len(samples))
            mean = [
                beta * old + (1 - beta) * new
                for old, new in zip(self.previous, mean)
            ]
        self.previous = mean
        self.period += 1
        return mean

    def beta(self, n):
        if self.momentum == 'sample':
            return 1 / (n + 1)
        if self.momentum == 'polyak':
            return self.period / (self.period + 1)
        return self.momentum

"""The slow, obvious version that the fast core is tested against.

It keeps every sample of a period in float64, and computes the statistic from
the definition when the period ends.
"""
import torch


class Reference:
    """Keeps all samples of a list of tensors.

    ``updates`` is T, ``window`` is L; ``draw`` decides about each sample.
    """

    def __init__(self, updates, window, momentum=None, draw=lambda: True):
        self.updates = updates
        self.window = window
        self.momentum = momentum
        self.draw = draw
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
        mean = [torch.stack(column).mean(0) for column in zip(*samples)]
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

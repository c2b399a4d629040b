"""Periodic sampling over weight distributions, in plain PyTorch.

Nothing in this package imports OpenMMLab.

The contract, for every optimizer update ``t = 1, 2, ...``::

    optimizer.step()                      # w_t
    if t is in the window of its period:  # the last L of its T updates
        if random() < sample_prob:
            n  <- n + 1
            mu <- mu + (w_t - mu) / n
    if t ends its period:
        m <- beta * m_prev + (1 - beta) * mu     # beta = 0 but for PSWM
        w <- m                                   # unless write_back=False
        n <- 0
"""
from .batch_norm import recalibrate
from .mean import RunningMean
from .resampler import PeriodicResampler, Resampling
from .schedule import Schedule
from .settings import Settings
from .techniques import PSWA, PSWM, PWALKS, Technique, build_technique
from .weights import running_statistics

__all__ = [
    'PSWA', 'PSWM', 'PWALKS', 'PeriodicResampler', 'Resampling',
    'RunningMean', 'Schedule', 'Settings', 'Technique', 'build_technique',
    'recalibrate', 'running_statistics'
]

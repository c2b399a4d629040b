"""What the method averages over, and the minima that it finds."""
from mmpsw.engine import PSWHook  # noqa: F401  (checks mmengine's version)
from mmpsw.registry import register_bare_names

from .weight_distribution import WeightDistributionHook

register_bare_names()

__all__ = ['WeightDistributionHook']

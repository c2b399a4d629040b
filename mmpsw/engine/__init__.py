"""The seam to mmengine: a file, or a folder, for each technique."""
from mmpsw.compatibility import check_mmengine

check_mmengine()

from .averaging import (  # noqa: E402
    PSWAmpOptimWrapper,
    PSWHook,
    PSWOptimWrapper,
)
from .gradient_pruning import GradientPruningHook  # noqa: E402
from .peers import (  # noqa: E402
    EpochAverageHook,
    LatestWeightAverage,
    LookaheadHook,
    SwitchEMAHook,
)

__all__ = [
    'EpochAverageHook', 'GradientPruningHook', 'LatestWeightAverage',
    'LookaheadHook', 'PSWAmpOptimWrapper', 'PSWHook', 'PSWOptimWrapper',
    'SwitchEMAHook'
]

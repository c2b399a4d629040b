"""The seam to mmengine: a file, or a folder, for each technique."""
from mmpsw.compatibility import check_mmengine

check_mmengine()

from .averaging import (  # noqa: E402
    PSWAmpOptimWrapper,
    PSWHook,
    PSWOptimWrapper,
)
from .lp_sgd import LpSGDConstructor, LpSGDHook  # noqa: E402
from .peers import (  # noqa: E402
    EpochAverageHook,
    LatestWeightAverage,
    LookaheadHook,
    SwitchEMAHook,
)
from .sparsity import MagnitudePruningHook, SparsityHook  # noqa: E402

__all__ = [
    'EpochAverageHook', 'LatestWeightAverage', 'LookaheadHook',
    'LpSGDConstructor', 'LpSGDHook', 'MagnitudePruningHook',
    'PSWAmpOptimWrapper', 'PSWHook', 'PSWOptimWrapper', 'SparsityHook',
    'SwitchEMAHook'
]

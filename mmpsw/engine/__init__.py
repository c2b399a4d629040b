"""The seam to mmengine: a file, or a folder, for each technique."""
from mmpsw.compatibility import check_mmengine

check_mmengine()

from .averaging import (  # noqa: E402
    PSWAmpOptimWrapper,
    PSWHook,
    PSWOptimWrapper,
)
from .free_adversarial import (  # noqa: E402
    FreeAdversarialGAN,
    GANHook,
    GANOptimWrapperConstructor,
    GeneratedImages,
)
from .gradient_pruning import GradientPruningHook  # noqa: E402
from .hadamard import fix_classifiers  # noqa: E402
from .lp_sgd import LpSGDConstructor, LpSGDHook  # noqa: E402
from .orthogonal import OrthogonalHook  # noqa: E402
from .peers import (  # noqa: E402
    EpochAverageHook,
    LatestWeightAverage,
    LookaheadHook,
    ScheduleFreeHook,
    SwitchEMAHook,
)
from .ride_along import RideAlongHook  # noqa: E402
from .sparsity import MagnitudePruningHook, SparsityHook  # noqa: E402

__all__ = [
    'EpochAverageHook', 'FreeAdversarialGAN', 'GANHook',
    'GANOptimWrapperConstructor', 'GeneratedImages', 'GradientPruningHook',
    'LatestWeightAverage', 'LookaheadHook', 'LpSGDConstructor', 'LpSGDHook',
    'MagnitudePruningHook', 'OrthogonalHook', 'PSWAmpOptimWrapper', 'PSWHook',
    'PSWOptimWrapper', 'RideAlongHook', 'ScheduleFreeHook', 'SparsityHook',
    'SwitchEMAHook', 'fix_classifiers'
]

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
from .peers import (  # noqa: E402
    EpochAverageHook,
    LatestWeightAverage,
    LookaheadHook,
    SwitchEMAHook,
)

__all__ = [
    'EpochAverageHook', 'FreeAdversarialGAN', 'GANHook',
    'GANOptimWrapperConstructor', 'GeneratedImages', 'LatestWeightAverage',
    'LookaheadHook', 'PSWAmpOptimWrapper', 'PSWHook', 'PSWOptimWrapper',
    'SwitchEMAHook'
]

"""The seam to mmengine: OptimWrapper, Hook, registration, resuming."""
from mmpsw.compatibility import check_mmengine

check_mmengine()

from .hook import PSWHook  # noqa: E402
from .optim_wrapper import PSWAmpOptimWrapper, PSWOptimWrapper  # noqa: E402
from .peers import (  # noqa: E402
    EpochAverageHook,
    LatestWeightAverage,
    SwitchEMAHook,
)
from .random_state import RandomStateHook  # noqa: E402
from .resume import allow_resume  # noqa: E402
from .saving import SafeSavingHook, save_safely  # noqa: E402

allow_resume()

__all__ = [
    'EpochAverageHook', 'LatestWeightAverage', 'PSWAmpOptimWrapper',
    'PSWHook', 'PSWOptimWrapper', 'RandomStateHook', 'SafeSavingHook',
    'SwitchEMAHook', 'allow_resume', 'save_safely'
]

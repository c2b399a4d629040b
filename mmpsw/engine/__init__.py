"""The seam to mmengine: OptimWrapper, Hook, registration, resuming."""
from mmpsw.compatibility import check_mmengine

check_mmengine()

from mmpsw.checkpoints import allow_resume  # noqa: E402
from mmpsw.runtime.random_state import RandomStateHook  # noqa: E402
from mmpsw.runtime.saving import SafeSavingHook, save_safely  # noqa: E402

from .averaging.hook import PSWHook  # noqa: E402
from .averaging.optim_wrapper import PSWAmpOptimWrapper, PSWOptimWrapper  # noqa: E402
from .peers import (  # noqa: E402
    EpochAverageHook,
    LatestWeightAverage,
    LookaheadHook,
    SwitchEMAHook,
)

allow_resume()

__all__ = [
    'EpochAverageHook', 'LatestWeightAverage', 'LookaheadHook',
    'PSWAmpOptimWrapper', 'PSWHook', 'PSWOptimWrapper', 'RandomStateHook', 'SafeSavingHook',
    'SwitchEMAHook', 'allow_resume', 'save_safely'
]

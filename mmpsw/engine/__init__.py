"""The seam to mmengine: OptimWrapper, Hook, registration, resuming."""
from mmpsw.compatibility import check_mmengine

check_mmengine()

from mmpsw.registry import register_bare_names  # noqa: E402

from .hook import PSWHook  # noqa: E402
from .optim_wrapper import PSWAmpOptimWrapper, PSWOptimWrapper  # noqa: E402
from .peers import (  # noqa: E402
    EpochAverageHook,
    LatestWeightAverage,
    SwitchEMAHook,
)
from .random_state import RandomStateHook  # noqa: E402
from .resume import allow_resume  # noqa: E402
from .saving import SafeSavingHook  # noqa: E402

register_bare_names()
allow_resume()

__all__ = [
    'EpochAverageHook', 'LatestWeightAverage', 'PSWAmpOptimWrapper',
    'PSWHook', 'PSWOptimWrapper', 'RandomStateHook', 'SafeSavingHook',
    'SwitchEMAHook', 'allow_resume'
]

"""What mmengine lacks for any run: saving, resuming, random state, ranks."""
from mmpsw.checkpoints import allow_resume

from .random_state import RandomStateHook
from .saving import SafeSavingHook, save_safely

allow_resume()

__all__ = ['RandomStateHook', 'SafeSavingHook', 'save_safely']

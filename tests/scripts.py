"""The scripts in tools/, as modules."""
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).resolve().parents[1] / 'tools'


def script(name: str) -> ModuleType:
    """``script('analysis/loss_line.py')``."""
    spec = spec_from_file_location(f'script_{Path(name).stem}', TOOLS / name)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module

"""What mmpsw runs with; setup.py requires the same."""
import importlib.metadata

from packaging.specifiers import SpecifierSet

__all__ = ['SUPPORTED', 'check_mmengine', 'check_torch']

SUPPORTED = dict(torch='>=2.6,<3', mmengine='>=0.10.2,<0.11')


def check_torch() -> None:
    """Raise ImportError unless the installed torch is supported."""
    _check('torch')


def check_mmengine() -> None:
    """Raise ImportError unless the installed mmengine is supported."""
    _check('mmengine')


def _check(package: str) -> None:
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return  # importing it says so, or another distribution provides it
    if not SpecifierSet(SUPPORTED[package]).contains(
            version, prereleases=True):
        raise ImportError(
            f'mmpsw does not support {package} {version}: install '
            f'{package}{SUPPORTED[package]}.')

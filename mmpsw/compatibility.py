"""What mmpsw runs with; setup.py requires the same.

OpenMMLab is there twice: its own packages, and the maintained forks of them,
which are imported by the same names. Either will do.
"""
import importlib
import importlib.metadata
import importlib.util

from packaging.specifiers import SpecifierSet

__all__ = ['FAMILIES', 'SUPPORTED', 'check_mmengine', 'check_operations',
           'check_torch', 'distribution']

SUPPORTED = dict(torch='>=2.6,<3', mmengine='>=0.10.2,<0.11')
# What pip calls the packages of each family, by the names of their import.
FAMILIES = {
    'openmmlab': dict(mmengine='mmengine', mmcv='mmcv', mmdet='mmdet',
                      mmseg='mmsegmentation', mmpretrain='mmpretrain'),
    'onedl': dict(mmengine='onedl-mmengine', mmcv='onedl-mmcv',
                  mmdet='onedl-mmdetection', mmseg='onedl-mmsegmentation',
                  mmpretrain='onedl-mmpretrain'),
}


def check_torch() -> None:
    """Raise ImportError unless the installed torch is supported."""
    _check('torch', 'torch')


def check_mmengine() -> None:
    """Raise ImportError unless one mmengine, which is supported, is there,
    and nothing of OpenMMLab is there twice."""
    for module in FAMILIES['openmmlab']:
        found = _installed(module)
        if len(found) > 1:
            names = ' '.join(found)
            raise ImportError(
                f'mmpsw finds {" and ".join(found)}, which overwrite each '
                f"other's files, because both are imported as {module}: pip "
                f'uninstall --yes {names}, and then pip install one of them')
    if importlib.util.find_spec('mmengine') is None:
        own, fork = (f"pip install '{family['mmengine']}"
                     f"{SUPPORTED['mmengine']}'"
                     for family in FAMILIES.values())
        raise ImportError('mmpsw needs mmengine, and finds none: '
                          f'{own}, or, of the maintained forks, {fork}')
    for name in _installed('mmengine'):
        _check(name, 'mmengine')


def check_operations() -> None:
    """Raise ImportError if mmcv's compiled operations do not load."""
    try:
        importlib.import_module('mmcv._ext')
    except ModuleNotFoundError:
        return  # mmcv-lite, or none: for many models that is enough
    except ImportError as error:
        name = distribution('mmcv')
        version, torch = map(importlib.metadata.version, (name, 'torch'))
        raise ImportError(
            f'{name} {version} was built for another torch than torch '
            f'{torch}, which is installed ({str(error).splitlines()[0]}): pip '
            f"install --force-reinstall --no-deps --no-build-isolation "
            f'--no-cache-dir --no-binary {name} {name}=={version} builds it '
            'for this one') from error


def distribution(module: str) -> str:
    """What pip calls a module of OpenMMLab, in the family that is there."""
    onedl = _installed('mmengine') == [FAMILIES['onedl']['mmengine']]
    return FAMILIES['onedl' if onedl else 'openmmlab'][module]


def _installed(module: str) -> list[str]:
    """The distributions that are installed of this name of import."""
    return [family[module] for family in FAMILIES.values()
            if _version(family[module]) is not None]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None  # importing it says so, or another one provides it


def _check(name: str, package: str) -> None:
    version = _version(name)
    if version is not None and not SpecifierSet(SUPPORTED[package]).contains(
            version, prereleases=True):
        raise ImportError(
            f'mmpsw does not support {name} {version}, but '
            f"{SUPPORTED[package]}: pip install '{name}{SUPPORTED[package]}'")

"""Looks into checkpoints before a run begins, without running what they hold.

A killed run, or a full disk, may leave a file that is cut off; a file from
elsewhere may be something else, or hold code.
"""
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from mmengine.utils import digit_version

from mmpsw.engine.resume import allow_resume

__all__ = ['newest_readable', 'read', 'why_unreadable']

_NUMBERED = re.compile(r'(?:epoch|iter)_\d+\.pth')


def read(path: str | Path) -> Any:
    """Reads a checkpoint as data, its tensors mapped and not copied.

    Raises:
        ValueError: It is cut off, no checkpoint, or holds code. Nothing of it
            was run.
    """
    allow_resume()
    # Before 2.6 the data of mmengine cannot be allowed one by one.
    safe = digit_version(torch.__version__) >= digit_version('2.6.0')
    if not safe:
        _check_whole(path)
        return None
    try:
        return torch.load(path, map_location='cpu', weights_only=True,
                          mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint '{path}' is not loaded, because it is no checkpoint "
            'or asks for code to be run, and checkpoints are read as data '
            f'only ({_first_line(error)}); give one that mmengine has '
            'saved') from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"checkpoint '{path}' cannot be read, because it is cut off or no "
            f'checkpoint ({_first_line(error)}); give another one, or '
            "--resume auto for the work dir's newest readable one") from error


def why_unreadable(path: str | Path) -> str | None:
    """What is wrong with a checkpoint; None where it can be read."""
    try:
        read(path)
    except ValueError as error:
        return str(error)
    return None


def newest_readable(work_dir: str | Path) -> tuple[Path | None, list[str]]:
    """Finds the checkpoint from which a work dir's training goes on.

    Args:
        work_dir: The folder of ``epoch_N.pth`` or ``iter_N.pth``.

    Returns:
        The one with the most iterations, or None, and a sentence for each
        file that cannot be read.
    """
    found, skipped = [], []
    for path in sorted(Path(work_dir).glob('*.pth')):
        if not _NUMBERED.fullmatch(path.name):
            continue
        try:
            checkpoint = read(path)
        except ValueError as error:
            skipped.append(str(error))
            continue
        meta = (checkpoint or {}).get('meta', {})
        number = int(re.search(r'\d+', path.name)[0])
        found.append((meta.get('iter', 0), number, path))
    return (max(found)[2] if found else None), skipped


def _check_whole(path: str | Path) -> None:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"checkpoint '{path}' cannot be read, because it is "
                         'cut off or no checkpoint; give another one')


def _first_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0].split('. ')[0][:200]

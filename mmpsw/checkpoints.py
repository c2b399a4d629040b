"""Checkpoints: read as data, and written whole.

A killed run, or a full disk, may leave a file that is cut off; a file from
elsewhere may be something else, or hold code.
"""
import _compat_pickle
import codecs
import errno
import inspect
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

__all__ = [
    'PARTIAL', 'allow_resume', 'check_resumable', 'data_only',
    'newest_readable', 'read', 'reason', 'whole_file', 'why_not_resumable'
]

_NUMBERED = re.compile(r'(?:epoch|iter)_\d+\.pth')
# What mmengine takes from a checkpoint to resume.
_RESUMED = ('state_dict', 'meta', 'message_hub')
# No checkpoint's name ends so: what a killed run leaves is not taken for one.
PARTIAL = '.psw-partial'
NUMBERS = ('float64', 'float32', 'float16', 'int64', 'int32', 'bool')


def allow_resume() -> None:
    """Allow what an mmengine checkpoint holds beside tensors.

    Since torch 2.6 ``torch.load`` reads weights only by default, and refuses
    the message hub's ``HistoryBuffer`` and its numpy arrays, so that
    ``--resume`` of stock mmengine 0.10 fails. These are plain data. With them
    on the list, ``weights_only`` stays on, and code in a checkpoint still
    cannot run: a HistoryBuffer names its methods through ``getattr``, for
    which a function stands in that finds nothing else.
    """
    if digit_version(torch.__version__) < digit_version('2.6.0'):
        return
    torch.serialization.add_safe_globals(plain_data())


def plain_data() -> list[Any]:
    """What mmengine saves beside tensors: classes, and others by name."""
    reconstruct = np.ndarray(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    renamed: list[tuple[Callable, str]] = [
        (_history_method, 'builtins.getattr')
    ]
    for core in ('numpy.core', 'numpy._core'):  # numpy 1 and 2
        renamed.append((reconstruct, f'{core}.multiarray._reconstruct'))
        renamed.append((scalar, f'{core}.multiarray.scalar'))
    dtypes = {type(np.dtype(number)) for number in NUMBERS}
    return [HistoryBuffer, np.ndarray, np.dtype, *dtypes, *renamed]


def _history_method(owner: Any, name: str) -> Callable:
    """``getattr``, for the public methods of HistoryBuffer only."""
    method = inspect.getattr_static(owner, name, None)
    if (owner is not HistoryBuffer or name.startswith('_')
            or not inspect.isfunction(method)):
        raise ValueError(f'A checkpoint asks for {name!r} of {owner!r}, which '
                         'no checkpoint of mmengine does: it is not loaded.')
    return method


def read(path: str | Path, whole: bool = True) -> Any:
    """Reads a checkpoint as data, its tensors mapped and not copied.

    Args:
        path: A local file.
        whole: Whether to compare the checksums too, which reads all of it.

    Raises:
        ValueError: It is cut off, damaged, no checkpoint, or holds code.
            Nothing of it was run.
    """
    try:
        content = _load(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint '{path}' is not loaded, because it is no checkpoint "
            'or asks for code to be run, and checkpoints are read as data '
            f'only ({reason(error)}); give one that mmengine has '
            'saved') from error
    except (RuntimeError, EOFError, OSError, LookupError, ValueError,
            TypeError, AttributeError) as error:
        raise ValueError(
            f"checkpoint '{path}' cannot be read, because it is cut off or no "
            f'checkpoint ({reason(error)}); give another one, or '
            "--resume auto for the work dir's newest readable one") from error
    if whole and zipfile.is_zipfile(path):
        _check_sums(path)
    return content


def why_not_resumable(path: str | Path) -> str | None:
    """What is wrong with a checkpoint; None for that of a training."""
    try:
        check_resumable(path, read(path))
    except ValueError as error:
        return str(error)
    return None


def check_resumable(path: str | Path, content: Any) -> None:
    """Looks whether a checkpoint is one of a training.

    Args:
        path: Its name, for the message.
        content: What was read.

    Raises:
        ValueError: It lacks what mmengine resumes from.
    """
    held = content if isinstance(content, dict) else {}
    missing = [key for key in _RESUMED if not isinstance(held.get(key), dict)]
    if not missing:
        missing = [f'meta.{key}' for key in ('epoch', 'iter')
                   if not isinstance(held['meta'].get(key), int)]
    if missing:
        raise ValueError(
            f"checkpoint '{path}' cannot be resumed from, because it has no "
            f"{', '.join(missing)}, as a training saves; give one that a "
            'training has saved, or start from its weights with load_from')


def newest_readable(work_dir: str | Path) -> tuple[Path | None, list[str]]:
    """Finds the checkpoint from which a work dir's training goes on.

    Args:
        work_dir: The folder of ``epoch_N.pth`` or ``iter_N.pth``.

    Returns:
        The one with the most iterations, or None, and a sentence for each
        file that cannot be resumed from. Checksums are compared from the
        newest one on, until one is right.
    """
    found, skipped = [], []
    for path in sorted(Path(work_dir).glob('*.pth')):
        if not _NUMBERED.fullmatch(path.name):
            continue
        try:
            content = read(path, whole=False)
            check_resumable(path, content)
            number = int(re.search(r'\d+', path.name)[0])
            found.append((content['meta']['iter'], number, path))
        except ValueError as error:
            skipped.append(str(error))
    for _, _, path in sorted(found, reverse=True):
        damage = why_not_resumable(path)
        if damage is None:
            return path, skipped
        skipped.append(damage)
    return None, skipped


@contextmanager
def data_only() -> Iterator[None]:
    """Makes mmengine and torch read all checkpoints as data, those too that
    they download, for which torch.hub asks for the opposite.

    Not before torch 2.6, which cannot be told what mmengine saves: there a
    download, unlike a local file, may run code.
    ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`` in the environment is obeyed.
    """
    switch = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    before = os.environ.get(switch)
    if _tells_data() and 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' not in os.environ:
        os.environ[switch] = '1'
    try:
        yield
    finally:
        os.environ.pop(switch, None)
        if before is not None:
            os.environ[switch] = before


def _tells_data() -> bool:
    """Whether torch can be told which classes are data."""
    return digit_version(torch.__version__) >= digit_version('2.6.0')


def _load(path: str | Path) -> Any:
    if not _tells_data():
        return load_restricted(path)
    allow_resume()
    return torch.load(str(path), map_location='cpu', weights_only=True,
                      mmap=zipfile.is_zipfile(path))


def load_restricted(path: str | Path) -> Any:
    """Reads a checkpoint where torch's ``weights_only`` is not enough.

    Before torch 2.6 it refuses what mmengine saves, and lets code in a
    TorchScript archive run (CVE-2025-32434). So only plain archives are read,
    and a name in them that is not torch's or our data is refused. mmengine,
    which then reads the same file without such care, finds nothing else.

    Raises:
        ValueError, pickle.UnpicklingError: It is something else.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError('it is not a zip archive, as torch saves')
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith('constants.pkl') for name in archive.namelist()):
            raise pickle.UnpicklingError('it is a TorchScript archive')
    return torch.load(str(path), map_location='cpu', weights_only=False,
                      mmap=True, pickle_module=_PlainData)


class _PlainData:
    """Takes the place of the module ``pickle`` in ``torch.load``."""

    class Unpickler(pickle.Unpickler):
        """Knows torch's own list of data, and what mmengine saves."""

        def find_class(self, module: str, name: str) -> Any:
            module, name = _compat_pickle.NAME_MAPPING.get(
                (module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
            try:
                return _data_by_name()[f'{module}.{name}']
            except KeyError:
                raise pickle.UnpicklingError(
                    f'unsupported global {module}.{name}') from None

    load = pickle.load  # torch looks for it, and calls it for old files only


def _data_by_name() -> dict[str, Any]:
    ours = (item if isinstance(item, tuple) else
            (item, f'{item.__module__}.{item.__qualname__}')
            for item in plain_data())
    later = {  # in torch's own list by now
        '_codecs.encode': codecs.encode,
        'builtins.set': set,
        'builtins.bytearray': bytearray
    }
    return {
        **later,
        **torch._weights_only_unpickler._get_allowed_globals(),
        **{name: data for data, name in ours}
    }


def _check_sums(path: str | Path) -> None:
    """torch.load does not look whether a byte has changed on the disk."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(
            f"checkpoint '{path}' cannot be read, because it is damaged: "
            f"'{damaged}' in it does not have its checksum; give another one, "
            "or --resume auto for the work dir's newest readable one")


def reason(error: BaseException) -> str:
    """What an error of torch.load says, without its advice."""
    text = str(error) or type(error).__name__
    found = (re.search(r'WeightsUnpickler error:\s*(.+)', text)
             or re.search(r'from a trusted source\.\s*(.+)', text))
    line = found[1] if found else text.splitlines()[0]
    return line.split('. ')[0].strip(' .')[:200]


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """The name under which to write a file, which then gets its own.

    Raises:
        OSError: It could not be written. What was at ``path`` still is.
    """
    path = Path(path)
    partial = path.with_name(f'.{path.name}{PARTIAL}')
    try:
        yield partial
        _flush_to_disk(partial)
        os.replace(partial, path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise OSError(
            f"'{path}' could not be saved, because the system says "
            f"'{error.strerror or error}'; what was saved before it is still "
            f'there: {"make room" if full else "mend that"}, and continue '
            'with --resume') from error
    finally:
        partial.unlink(missing_ok=True)
    with suppress(OSError):  # not every file system can do it for a folder
        _flush_to_disk(path.parent)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

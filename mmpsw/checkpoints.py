"""Checkpoints: read as data, and written whole.

A killed run, or a full disk, may leave a file that is cut off; a file from
elsewhere may be something else, or hold code.
"""
import errno
import inspect
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

# No checkpoint's name ends so: what a killed run leaves is not taken for one.
PARTIAL = '.psw-partial'
_NUMBERED = re.compile(r'(?:epoch|iter)_\d+\.pth')
# What mmengine takes from a checkpoint to resume.
_RESUMED = ('state_dict', 'meta', 'message_hub', 'optimizer')
# What a framework's inference reads besides the weights.
_DEPLOYED = ('dataset_meta', 'cfg')
# Their letters. An array of objects, or of records, which may hold objects,
# could be forged to have addresses for elements.
_PLAIN = ''.join(set(np.typecodes['All']) - set('OV'))
_CODE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
_ANOTHER = ("give another one, or --resume for the work dir's newest readable "
            'one')


def allow_resume() -> None:
    """Allow what an mmengine checkpoint holds beside tensors.

    ``torch.load(weights_only=True)`` refuses the message hub's HistoryBuffer
    and its numpy arrays, so that ``--resume`` of stock mmengine 0.10 fails,
    and what a data set's ``metainfo`` may hold: arrays of other numbers, or
    of names, paths, a config's dicts. Code in a checkpoint still cannot run:
    a HistoryBuffer names its methods through ``getattr``; a function that
    finds no others takes its place.
    """
    renamed: list[tuple[Callable, str]] = [
        (_history_method, 'builtins.getattr')]
    for core in ('numpy.core', 'numpy._core'):  # numpy 1 and 2
        renamed += [(np.ndarray(0).__reduce__()[0],
                     f'{core}.multiarray._reconstruct'),
                    (np.float64(0).__reduce__()[0],
                     f'{core}.multiarray.scalar')]
    dtypes = {type(np.dtype(letter)) for letter in _PLAIN}
    # With their names, as onedl-mmengine takes bare classes off the list when
    # it has loaded something.
    renamed += [(kind, f'{kind.__module__}.{kind.__qualname__}')
                for kind in (HistoryBuffer, ConfigDict, PosixPath,
                             PurePosixPath, np.ndarray, np.dtype, *dtypes)]
    torch.serialization.add_safe_globals(renamed)


def _history_method(owner: Any, name: str) -> Callable:
    """``getattr``, for the public methods of HistoryBuffer only."""
    method = inspect.getattr_static(owner, name, None)
    if (owner is not HistoryBuffer or name.startswith('_')
            or not inspect.isfunction(method)):
        raise ValueError(f'A checkpoint asks for {name!r} of {owner!r}, which '
                         'no checkpoint of mmengine does: it is not loaded.')
    return method


@contextmanager
def data_only() -> Iterator[None]:
    """Makes mmengine and torch read all checkpoints as data, those too that
    they download, for which torch.hub asks for the opposite.

    ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`` in the environment is obeyed.
    """
    allow_resume()
    switch = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    before = os.environ.get(switch)
    if os.environ.get(_CODE) not in ('1', 'y', 'yes', 'true'):
        os.environ[switch] = '1'
    try:
        yield
    finally:
        os.environ.pop(switch, None)
        if before is not None:
            os.environ[switch] = before


def is_local(path: str) -> bool:
    """Whether a path is one of this machine's file systems."""
    return '://' not in path and not path.startswith('s3:')


def read(path: str | Path, whole: bool = True) -> Any:
    """Reads a local checkpoint as data, its tensors mapped and not copied
    where it is not compressed.

    Args:
        path: The file.
        whole: Whether to compare the checksums too, which reads all of it.

    Raises:
        ValueError: It is cut off, damaged, no checkpoint, or holds code.
    """
    allow_resume()
    try:
        # By default as data only, or as the environment says.
        content = torch.load(str(path), map_location='cpu',
                             mmap=_can_be_mapped(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint '{path}' is not loaded, because it is no checkpoint "
            'or asks for code to be run, and checkpoints are read as data '
            f'only ({reason(error)}); give one that mmengine has '
            f'saved, or, if you trust it, set {_CODE}=1 in the environment'
        ) from error
    except Exception as error:  # a file that is cut off ends anywhere
        raise ValueError(
            f"checkpoint '{path}' cannot be read, because it is cut off or no "
            f'checkpoint ({reason(error)}); {_ANOTHER}') from error
    # torch.load does not look whether a byte has changed on the disk.
    if whole and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(
                f"checkpoint '{path}' cannot be read, because it is damaged: "
                f"'{damaged}' in it does not have its checksum; {_ANOTHER}")
    return content


def reason(error: BaseException) -> str:
    """What an error of torch.load says, without its advice."""
    text = str(error) or type(error).__name__
    found = (re.search(r'WeightsUnpickler error:\s*(.+)', text)
             or re.search(r'from a trusted source\.\s*(.+)', text))
    line = found[1] if found else text.splitlines()[0]
    return line.split('. ')[0].strip(' .')[:200]


def weights(path: str | Path, content: Any) -> dict[str, Any]:
    """Returns what was read at ``path``: its ``state_dict``, or itself.

    Raises:
        ValueError: It holds no weights.
    """
    held = content
    if isinstance(content, dict):
        held = content.get('state_dict', content)
    if not isinstance(held, dict):
        raise ValueError(f"checkpoint '{path}' holds no weights, but a "
                         f'{type(held).__name__}; give one that mmengine has '
                         'saved')
    if held and not any(map(torch.is_tensor, held.values())):
        raise ValueError(f"checkpoint '{path}' holds no weights, but "
                         f"{', '.join(map(repr, held))}; give one that "
                         'mmengine has saved')
    return held


def check_resumable(path: str | Path, content: Any) -> None:
    """A ValueError where what was read lacks what mmengine resumes from."""
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
    """Finds the checkpoint with the most iterations, if any.

    It is an ``epoch_N.pth`` or ``iter_N.pth`` of the work dir, or where it has
    none, what its ``last_checkpoint`` names. Returns also a sentence for each
    file that cannot be resumed from, or is left over from a run that was
    overwritten: it has more iterations than that one, and is older. Checksums
    are compared from the newest one on, until one is right.
    """
    paths = [path for path in sorted(Path(work_dir).glob('*.pth'))
             if _NUMBERED.fullmatch(path.name)]
    pointer = Path(work_dir) / 'last_checkpoint'
    named = pointer.read_text().strip() if pointer.is_file() else ''
    if not paths and named and is_local(named):  # CheckpointHook's out_dir
        paths = [Path(named)]
    found, skipped = [], []
    for path in paths:
        try:
            content = read(path, whole=False)
            check_resumable(path, content)
            found.append((content['meta']['iter'], path))
        except ValueError as error:
            skipped.append(str(error))
    for count, last in found:
        if last.name == Path(named).name:
            left = [path for more, path in found if more > count
                    and path.stat().st_mtime < last.stat().st_mtime]
            skipped += [f"'{path}' is of a run that was overwritten, because "
                        f"it is older than '{last}'" for path in left]
            found = [pair for pair in found if pair[1] not in left]
    for _, path in sorted(found, reverse=True):
        try:
            read(path)
            return path, skipped
        except ValueError as error:
            skipped.append(str(error))
    return None, skipped


def _can_be_mapped(path: str | Path) -> bool:
    """Whether it is a file of torch.save that was not compressed."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED
                   for entry in archive.infolist())


def mean(paths: Sequence[Path],
         held: Callable[[Path, Any], dict[str, Any]] = weights
         ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the mean weights of checkpoints, and their ``meta``.

    ``held`` takes them out of what was read at a path.

    Floating-point tensors are averaged in double precision and get their own
    precision back. All else is the last checkpoint's: counters, and a buffer
    whose mean is infinite, as one that masks is.

    Raises:
        ValueError: A file is no checkpoint, has other keys or shapes than
            the first one, or values that are not finite.
    """
    total: dict[str, Any] = {}
    for count, path in enumerate(paths, start=1):
        content = read(path)
        last = held(path, content)
        if count == 1:
            total = {key: _widened(value) for key, value in last.items()}
        for key in [*total, *last]:
            _check_alike(key, total, last, path)
        for key in filter(lambda key: _is_float(last[key]), last):
            total[key] += (last[key] - total[key]) / count
    meta = content.get('meta') or {}
    meta = {key: meta[key] for key in _DEPLOYED if key in meta}
    meta.update(sources=[path.name for path in paths], count=len(paths))
    return {key: _narrowed(total[key], last[key]) for key in last}, meta


def _is_float(value: Any) -> bool:
    return torch.is_tensor(value) and (value.is_floating_point()
                                       or value.is_complex())


def _widened(value: Any) -> Any:
    if not _is_float(value):
        return value
    return value.to(torch.promote_types(value.dtype, torch.float64), copy=True)


def _narrowed(total: Any, last: Any) -> Any:
    averaged = _is_float(last) and total.isfinite().all()
    return total.to(last.dtype) if averaged else last


def _check_alike(key: str, first: dict, last: dict, path: Path) -> None:
    if (key in first) != (key in last):
        raise ValueError(
            f"'{path}' {'lacks' if key in first else 'has'} '{key}', unlike "
            'the first checkpoint; average checkpoints of one model')
    value = last[key]
    if _is_float(value) and first[key].shape != value.shape:
        raise ValueError(
            f"'{path}' has '{key}' in shape {tuple(value.shape)}, the first "
            f'checkpoint in {tuple(first[key].shape)}; average checkpoints of '
            'one model')
    # A checkpoint says by its name only that something is a parameter.
    if _is_float(value) and not value.isfinite().all() and (
            value.isnan().any() or key.endswith(('weight', 'bias'))):
        raise ValueError(f"'{path}' has values in '{key}' that are not "
                         'finite; leave this checkpoint out')


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

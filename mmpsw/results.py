"""The folders in which scripts leave their results."""
from collections.abc import Sequence
from pathlib import Path

__all__ = ['out_folder']


def out_folder(path: str | Path,
               results: Sequence[str],
               overwrite: bool = False) -> Path:
    """Make a folder for results, unless it holds those of an earlier run.

    Args:
        path (str or Path): The folder; it is made where it is missing.
        results (Sequence[str]): Patterns of the files that will be written.
        overwrite (bool): Whether they may replace others.

    Raises:
        ValueError: It is a file, or holds such files.
    """
    out = Path(path)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out '{out}' is a file; give a folder")
    old = sorted(file for name in results for file in out.glob(name))
    if old and not overwrite:
        raise ValueError(f"'{out}' holds the results of an earlier run "
                         f'({old[0].name}); give another --out, or '
                         '--overwrite')
    out.mkdir(parents=True, exist_ok=True)
    return out

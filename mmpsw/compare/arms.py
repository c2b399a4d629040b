"""Finds the arms of a comparison in folders of work directories.

A grid, as ``tools/compare.py run`` makes it, is::

    WORK/comparison.json
    WORK/ARM/seed_0/TIMESTAMP/vis_data/scalars.json

Any other work directory of mmengine is an arm of one run, and a folder of
such is a grid without seeds.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmpsw.compare.runs import Arm, MissingRunError, Run, read_run

GRID_FILE = 'comparison.json'
BASELINE = 'baseline'


@dataclass(frozen=True)
class _Source:
    """Where an arm's runs are expected.

    Attributes:
        name: The arm's name.
        folders: Work directories, in the order of the seeds.
        planned: Whether a list of arms and seeds asks for them, so that one
            that is not there yet is no error.
        named: Whether the user gave the name, as ``NAME=DIR``.
    """

    name: str
    folders: tuple[Path, ...]
    planned: bool = False
    named: bool = False


def read_arms(paths: Sequence[str | Path],
              metric: str | None = None,
              rule: str | None = None) -> list[Arm]:
    """Read the arms that work directories hold.

    A run that did not reach its end is left out where its arm has others
    that did; an arm's ``notes`` say so, and what is missing. An arm that was
    planned and has no curve yet is returned without runs.

    Args:
        paths: Grids and work directories. A directory may be given a name,
            ``NAME=DIR``; several with one name are the seeds of an arm.
        metric: What to compare, as in :func:`read_run`. By default what is
            the first run's primary metric there.
        rule: 'greater' or 'less', as in :func:`read_run`.

    Returns:
        list[Arm]: In the order of the grid's list, or the baseline first and
        the others by name; grids and directories in the order given.

    Raises:
        ValueError: If a path holds no run, if two arms have one name, or if
            the metric or its rule is not known.
    """
    sources = _unique_names(
        source for path in paths for source in _sources(str(path)))
    metric = _common_metric(sources, metric, rule)
    return [_read_arm(source, metric, rule) for source in sources]


def find_baseline(arms: Sequence[Arm], name: str | None = None) -> str:
    """The name of the arm that the others are compared with.

    Args:
        arms: All of them; those without runs cannot be it.
        name: The user's choice. By default the arm called 'baseline', else
            the first one.

    Raises:
        ValueError: If it is not there, or has no run.
    """
    names = [arm.name for arm in arms if arm.runs]
    if name is None:
        return BASELINE if BASELINE in names else names[0]
    if name not in names:
        raise ValueError(f'baseline={name!r} is not an arm that was trained, '
                         f'because those are {names}. Name one of these.')
    return name


def read_grid_file(folder: str | Path) -> dict | None:
    """What ``tools/compare.py run`` was asked for; None where it wasn't.

    Raises:
        ValueError: If the file is broken.
    """
    path = Path(folder) / GRID_FILE
    if not path.is_file():
        return None
    try:
        grid = json.loads(path.read_text(encoding='utf-8'))
        return {**grid, 'arms': list(grid['arms']),
                'seeds': [int(seed) for seed in grid['seeds']]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{str(path)!r} cannot be read, because it is not what '
            f'compare.py run writes ({type(error).__name__}: {error}). Remove '
            'it to have the folders beside it read as they are.') from error


def is_grid(path: str | Path) -> bool:
    """Whether a folder holds arms, and is no run or arm itself."""
    path = Path(path)
    return (path / GRID_FILE).is_file() or (
        not _is_run(path) and not _seed_folders(path)
        and bool(_arm_folders(path)))


def split_name(path: str) -> tuple[str | None, Path]:
    """``NAME=DIR`` in its parts; NAME is None where there is none."""
    name, equals, folder = path.partition('=')
    if equals and name and not Path(path).exists():
        return name, Path(folder)
    return None, Path(path)


def _sources(path: str) -> list[_Source]:
    name, folder = split_name(path)
    if not folder.is_dir():
        raise ValueError(
            f'There is no run in {str(folder)!r}, because it is no folder. '
            'Name a work directory, or the folder of several.')
    if name is None and is_grid(folder):
        return _grid_sources(folder)
    folders = tuple(_seed_folders(folder)) or (folder, )
    return [_Source(name or folder.resolve().name, folders,
                    named=name is not None)]


def _grid_sources(work: Path) -> list[_Source]:
    grid = read_grid_file(work) or dict(arms=[], seeds=[])
    found = {folder.name: folder for folder in _arm_folders(work)}
    others = sorted(set(found) - set(grid['arms']),
                    key=lambda name: (name != BASELINE, name))
    sources = []
    for name in [*grid['arms'], *others]:
        planned = name in grid['arms']
        seeds = [work / name / f'seed_{seed}'
                 for seed in grid['seeds'] if planned]
        here = _seed_folders(work / name) if name in found else []
        folders = list(dict.fromkeys([*seeds, *here])) or [work / name]
        sources.append(_Source(name, tuple(folders), planned=planned))
    return sources


def _arm_folders(work: Path) -> list[Path]:
    return [folder for folder in sorted(work.iterdir()) if folder.is_dir()
            and (_is_run(folder) or _seed_folders(folder))]


def _seed_folders(folder: Path) -> list[Path]:
    numbers = {}
    for path in folder.glob('seed_*'):
        number = path.name.removeprefix('seed_')
        if path.is_dir() and number.isdecimal():
            numbers[int(number)] = path
    return [numbers[number] for number in sorted(numbers)]


def _is_run(folder: Path) -> bool:
    return any(folder.glob('*/vis_data/scalars.json'))


def _unique_names(found: Iterable[_Source]) -> list[_Source]:
    """Joins the seeds of named arms; tells equal folder names apart."""
    sources: list[_Source] = []
    for source in found:
        twin = next((i for i, other in enumerate(sources)
                     if source.named and other.named
                     and other.name == source.name), None)
        if twin is None:
            sources.append(source)
        else:
            folders = sources[twin].folders + source.folders
            sources[twin] = replace(sources[twin], folders=folders)
    _check_folders(sources)
    sources = [_with_parent(source, sources) for source in sources]
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            folders = [str(source.folders[0].parent) for source in sources
                       if source.name == name]
            raise ValueError(
                f'Several arms are called {name!r}, because folders of that '
                f'name are in {folders}. Name them: NAME=DIR.')
    return sources


def _check_folders(sources: Sequence[_Source]) -> None:
    folders = [path.resolve() for source in sources for path in source.folders]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ValueError(
                f'{str(folder)!r} is there twice, because it was named more '
                'than once or lies in a folder that was. A run counts once: '
                'name it once.')


def _with_parent(source: _Source, sources: Sequence[_Source]) -> _Source:
    """An arm whose folder's name is another's too, called PARENT/NAME."""
    alike = sum(other.name == source.name for other in sources)
    if alike == 1 or source.named:
        return source
    folder = source.folders[0].resolve()
    if folder.name.startswith('seed_'):
        folder = folder.parent
    return replace(source, name=f'{folder.parent.name}/{source.name}')


def _common_metric(sources: Sequence[_Source], metric: str | None,
                   rule: str | None) -> str:
    """The metric's key, which the first run that has a curve decides."""
    first = None
    for source in sources:
        for folder in source.folders:
            try:
                return read_run(folder, metric=metric, rule=rule).metric
            except MissingRunError as error:
                first = first or error
    raise first


def _read_arm(source: _Source, metric: str, rule: str | None) -> Arm:
    runs, notes = [], []
    waiting = [folder.name for folder in source.folders
               if source.planned and not _is_run(folder)]
    if waiting:
        notes.append(f'{source.name}: {", ".join(waiting)} '
                     f'{"was" if len(waiting) == 1 else "were"} not trained '
                     'yet.')
    for folder in source.folders:
        if folder.name in waiting:
            continue
        try:
            runs.append(read_run(folder, source.name, metric, rule))
        except MissingRunError as error:
            # Alone, what was named by hand must be there.
            if not source.planned and len(source.folders) == 1:
                raise
            reason = str(error).split('. ')[0]
            notes.append(f'{source.name}: {folder.name} is left out. '
                         f'{reason}.')
    kept, left_out = _without_unfinished(source.name, runs)
    if not kept:
        notes.insert(0, f'{source.name} has no curve yet, and is not in the '
                     'table.')
    return Arm(source.name, tuple(kept), (*notes, *left_out))


def _without_unfinished(name: str,
                        runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    finished = [run for run in runs if run.finished]
    notes = []
    for run in runs:
        if run.finished:
            continue
        where = f'{run_name(name, run)} {_progress(run)}'
        notes.append(
            f'{where}; it is left out, as others of its arm are finished.'
            if finished else
            f'{where}; its last point counts as its final one.')
    return finished or list(runs), notes


def run_name(arm: str, run: Run) -> str:
    """What a note calls a run."""
    return arm if run.seed is None else f'{arm}, seed {run.seed},'


def _progress(run: Run) -> str:
    return (f'was validated last at {run.unit} {run.steps[-1]} of '
            f'{run.max_steps}')

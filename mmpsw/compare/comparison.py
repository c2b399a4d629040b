"""Arms side by side: which runs are found where, as two data frames.

A grid, as ``tools/compare.py run`` makes it, is::

    WORK/comparison.json
    WORK/ARM/seed_0/TIMESTAMP/vis_data/scalars.json

Any other work directory of mmengine is an arm of one run, and a folder of
such is a grid without seeds.
"""
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from mmpsw.compare.runs import (
    MissingRunError,
    Run,
    full_name,
    higher_is_better,
    primary_metric,
    read_run,
)

__all__ = ['GRID_FILE', 'Comparison', 'is_grid', 'read', 'read_plan',
           'split_name']

GRID_FILE = 'comparison.json'
BASELINE = 'baseline'


@dataclass
class Comparison:
    """Runs that can be compared.

    Attributes:
        runs: A row for each run, by its number: arm, seed, repeat (of the
            seed in its arm, from 0), last (step), time (s per iteration),
            memory (MB) and source, the :class:`Run` itself.
        points: A row for each validation: run, arm, seed, step, value.
        metric: What the values are.
        unit: What a step counts, 'epoch' or 'iteration'.
        higher: Whether higher values are better.
        baseline: The arm that the others are compared with.
        notes: Sentences on what was found wanting when they were read.
    """

    runs: pd.DataFrame
    points: pd.DataFrame
    metric: str
    unit: str
    higher: bool
    baseline: str
    notes: list[str]

    @property
    def arms(self) -> list[str]:
        """The arms' names, in their order."""
        return list(dict.fromkeys(self.runs.arm))

    @property
    def better(self) -> str:
        """'higher' or 'lower'."""
        return 'higher' if self.higher else 'lower'


@dataclass(frozen=True)
class _Place:
    """Where a run is expected.

    Attributes:
        arm: Its arm's name.
        folder: Its work directory.
        planned: Whether a list of arms and seeds asks for it, so that one
            that is not there yet is no error.
        named: Whether the user gave the name, as ``NAME=DIR``.
    """

    arm: str
    folder: Path
    planned: bool = False
    named: bool = False

    @property
    def home(self) -> Path:
        """Its arm's folder."""
        folder = self.folder.resolve()
        return folder.parent if folder.name.startswith('seed_') else folder


def read(paths: Sequence[str | Path],
         metric: str | None = None,
         rule: str | None = None,
         baseline: str | None = None) -> Comparison:
    """Read the runs that work directories hold.

    A run that did not reach its end is left out where its arm has others
    that did; the notes say so, and what is missing.

    Args:
        paths: Grids and work directories. A directory may be given a name,
            ``NAME=DIR``; several with one name are the seeds of an arm.
        metric: What to compare, or its last part. By default what a grid was
            told, else the first run's primary metric.
        rule: 'greater' or 'less', where the metric's name does not say.
        baseline: The arm that the others are compared with. By default the
            one called 'baseline', else the first one.

    Raises:
        ValueError: If a path holds no run, if two arms have one name, or if
            the metric, its rule or the baseline is not known.
    """
    places = _distinct([place for path in paths for place in _find(str(path))])
    found = {place: _read(place, places) for place in places}
    logged = [run for run in found.values() if run and run.logged]
    if not logged:
        raise MissingRunError(
            f'there is no curve in {", ".join(map(str, paths))}, because no '
            'validation metric is logged there yet (mmdet logs none while a '
            'detector finds no box); wait for a validation, or give the '
            'config a val_evaluator')
    plan = next(filter(None, map(_plan_of, paths)), {})
    if metric is None:
        metric, rule = plan.get('metric'), rule or plan.get('rule')
    metric = _choose(metric, logged)
    notes = _missing(found, metric)
    runs, unfinished = _without_unfinished(_run_frame(found, metric))
    units = {run.unit for run in runs.source}
    if len(units) > 1:
        raise ValueError('the runs cannot be compared, because some count '
                         'epochs and some iterations; compare runs of equal '
                         'steps')
    arms = list(dict.fromkeys(runs.arm))
    if baseline is None and BASELINE not in arms:
        notes.insert(0, f'Compared with {arms[0]}, the first arm (--baseline '
                     'names another).')
    return Comparison(
        runs, _point_frame(runs, metric), metric, units.pop(),
        higher_is_better(metric, rule, logged[0].checkpoint_hook),
        _find_baseline(arms, baseline), [*notes, *unfinished])


def read_plan(folder: str | Path) -> dict | None:
    """What ``tools/compare.py run`` was asked for; None where it wasn't.

    Raises:
        ValueError: If the file is broken.
    """
    path = Path(folder) / GRID_FILE
    if not path.is_file():
        return None
    try:
        plan = json.loads(path.read_text(encoding='utf-8'))
        return {**plan, 'arms': dict(plan['arms']),
                'seeds': [int(seed) for seed in plan['seeds']]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"'{path}' cannot be read, because it is not what compare.py run "
            f'writes ({type(error).__name__}: {error}); remove it to have the '
            'folders beside it read as they are') from error


def is_grid(path: str | Path) -> bool:
    """Whether a folder holds arms, and is no run or arm itself."""
    path = Path(path)
    return (path / GRID_FILE).is_file() or (
        not _is_run(path) and not _seed_folders(path)
        and bool(_arm_folders(path)))


def split_name(path: str | Path) -> tuple[str | None, Path]:
    """``NAME=DIR`` in its parts; NAME is None where there is none."""
    name, equals, folder = str(path).partition('=')
    if equals and name and not Path(path).exists():
        return name, Path(folder)
    return None, Path(path)


def _plan_of(path: str | Path) -> dict | None:
    name, folder = split_name(path)
    return read_plan(folder) if name is None else None


def _find(path: str) -> list[_Place]:
    name, folder = split_name(path)
    if not folder.is_dir():
        raise ValueError(f"there is no run in '{folder}', because it is no "
                         'folder; give a work directory, or the folder of '
                         'several')
    if name is None and is_grid(folder):
        return _find_in_grid(folder)
    return [_Place(name or folder.resolve().name, run_dir, named=bool(name))
            for run_dir in _seed_folders(folder) or [folder]]


def _find_in_grid(work: Path) -> list[_Place]:
    plan = read_plan(work) or dict(arms={}, seeds=[])
    others = {folder.name for folder in _arm_folders(work)} - {*plan['arms']}
    places = []
    for arm in plan['arms']:
        planned = [work / arm / f'seed_{seed}' for seed in plan['seeds']]
        found = _seed_folders(work / arm)
        places += [_Place(arm, folder, planned=True)
                   for folder in dict.fromkeys([*planned, *found])]
    for arm in sorted(others, key=lambda name: (name != BASELINE, name)):
        places += [_Place(arm, folder) for folder in
                   _seed_folders(work / arm) or [work / arm]]
    return places


def _arm_folders(work: Path) -> list[Path]:
    return [folder for folder in sorted(work.iterdir()) if folder.is_dir()
            and (_is_run(folder) or _seed_folders(folder))]


def _seed_folders(folder: Path) -> list[Path]:
    found = [path for path in folder.glob('seed_*')
             if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def _is_run(folder: Path) -> bool:
    return any(folder.glob('*/vis_data/scalars.json'))


def _distinct(places: Sequence[_Place]) -> list[_Place]:
    """Arms of one name in several folders become PARENT/NAME."""
    folders = [place.folder.resolve() for place in places]
    twice = {str(f) for f in folders if folders.count(f) > 1}
    if twice:
        raise ValueError(f"'{twice.pop()}' is there twice, and a run counts "
                         'once; give it, or a folder that holds it, once')
    renamed = [replace(place, arm=f'{place.home.parent.name}/{place.arm}')
               if _homes(place, places) > 1 and not place.named else place
               for place in places]
    for place in renamed:
        if not place.named and _homes(place, renamed) > 1:
            raise ValueError(f"several arms are called '{place.arm}', after "
                             'their folders; give them names: NAME=DIR')
    return renamed


def _homes(place: _Place, places: Sequence[_Place]) -> int:
    return len({other.home for other in places if other.arm == place.arm})


def _read(place: _Place, places: Sequence[_Place]) -> Run | None:
    """A run, or None. Alone, what was named by hand must be there."""
    try:
        return read_run(place.folder)
    except MissingRunError:
        if place.planned or sum(p.arm == place.arm for p in places) > 1:
            return None
        raise


def _choose(metric: str | None, logged: Sequence[Run]) -> str:
    """A metric's full name; without one, the first run's primary metric."""
    if metric is None:
        return primary_metric(logged[0].logged, logged[0].checkpoint_hook)
    names = (full_name(metric, run.logged) for run in logged)
    found = next(filter(None, names), None)
    if found is None:
        raise ValueError(f"--metric '{metric}' is not what the runs logged; "
                         f'give one of {", ".join(logged[0].logged)}')
    return found


def _missing(found: Mapping[_Place, Run | None], metric: str) -> list[str]:
    """Notes on the runs without a curve."""
    notes = []
    for arm in dict.fromkeys(place.arm for place in found):
        runs = {place.folder.name: run for place, run in found.items()
                if place.arm == arm}
        kept = [name for name, run in runs.items()
                if run and metric in run.logged]
        if not kept:
            notes.append(f'{arm} has no curve yet, and is not in the table.')
        for name, run in runs.items():
            if run is None:
                notes.append(f'{arm}: {name} was not trained yet.')
            elif name not in kept:
                notes.append(f'{arm}: {name} is left out, as it has no '
                             f'{metric} (but {", ".join(run.logged) or "-"}).')
    return notes


def _run_frame(found: Mapping[_Place, Run | None],
               metric: str) -> pd.DataFrame:
    runs = pd.DataFrame([
        dict(arm=place.arm, seed=run.seed, source=run, time=run.time,
             memory=run.memory, end=run.max_steps,
             last=max(step for step, metrics in run.validations.items()
                      if metric in metrics))
        for place, run in found.items() if run and metric in run.logged
    ]).astype(dict(seed='Int64', time=float, memory=float, end=float))
    runs['repeat'] = runs.groupby(['arm', 'seed'], dropna=False).cumcount()
    return runs


def _point_frame(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A validation without the metric (no box found, say) is no point."""
    return pd.DataFrame([
        dict(run=number, arm=run.arm, seed=run.seed, step=step,
             value=metrics[metric])
        for number, run in runs.iterrows()
        for step, metrics in run.source.validations.items()
        if metric in metrics
    ]).astype(dict(seed='Int64'))


def _without_unfinished(runs: pd.DataFrame
                        ) -> tuple[pd.DataFrame, list[str]]:
    done = runs.end.isna() | (runs['last'] >= runs.end)
    others_done = done.groupby(runs.arm).transform('any')
    notes = []
    for number, run in runs[~done].iterrows():
        notes.append(
            f'{name_of(run)} was validated last at {run.source.unit} '
            f'{run["last"]} of {run.end:.0f}; ' + (
                'it is left out, as others of its arm are finished.'
                if others_done[number] else
                'its last point counts as its final one.'))
    return runs[done | ~others_done], notes


def name_of(run: pd.Series) -> str:
    """What a note calls a run."""
    return run.arm if pd.isna(run.seed) else f'{run.arm}, seed {run.seed},'


def _find_baseline(arms: Sequence[str], name: str | None) -> str:
    if name is None:
        return BASELINE if BASELINE in arms else arms[0]
    if name not in arms:
        raise ValueError(f"--baseline '{name}' is not an arm that was trained;"
                         f' give one of {", ".join(arms)}')
    return name

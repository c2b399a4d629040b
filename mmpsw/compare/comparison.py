"""Arms side by side: which runs are found where, as two data frames.

A grid, as ``tools/compare.py run`` makes it, is::

    WORK/comparison.json
    WORK/ARM/seed_0/TIMESTAMP/vis_data/scalars.json

Any other work directory of mmengine is an arm of one run, and a folder of
such is a grid without seeds.
"""
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mmpsw.compare.runs import (
    Run,
    full_name,
    higher_is_better,
    hook_of,
    primary_metric,
    read_run,
)
from mmpsw.configs import folder_name

__all__ = ['Comparison', 'name_of', 'read', 'read_plan']

BASELINE = 'baseline'


@dataclass
class Comparison:
    """Runs that can be compared.

    Attributes:
        runs: A row for each run, by its number: arm, seed, repeat (of the
            seed in its arm, from 0), last (step), time (s per iteration),
            memory (MB), start (the value before the first step; NaN where
            it was not validated) and source, the :class:`Run` itself.
        points: A row for each validation after the first step: run, arm,
            seed, step, value.
        metric: What the values are.
        unit: What a step counts, 'epoch' or 'iteration'.
        better: Which values are better, 'higher' or 'lower'.
        baseline: The arm that the others are compared with.
        notes: Sentences on what was found wanting when they were read.
        plans: What ``compare.py run`` was asked for, by its folder.
    """

    runs: pd.DataFrame
    points: pd.DataFrame
    metric: str
    unit: str
    better: str
    baseline: str
    notes: list[str]
    plans: dict[str, dict]

    @property
    def arms(self) -> list[str]:
        """The arms' names, in their order."""
        return list(self.runs.arm.unique())

    def of_arm(self, arm: str) -> pd.DataFrame:
        """The runs of an arm."""
        return self.runs[self.runs.arm == arm]

    @property
    def first(self) -> Run:
        """The baseline's first run."""
        return self.of_arm(self.baseline).source.iloc[0]


def read(paths: Sequence[str | Path],
         metric: str | None = None,
         rule: str | None = None,
         baseline: str | None = None) -> Comparison:
    """Read the runs that work directories hold.

    A run that did not reach its end is left out where its arm has others
    that did, and so is one that cannot be read; the notes say so, and what
    is missing.

    Args:
        paths: Grids and work directories. One may be given a name,
            ``NAME=DIR``: several directories with one name are the seeds of
            an arm, and a grid's arms become NAME/ARM.
        metric: What to compare, or its last part. By default what a grid was
            told, else the first run's primary metric.
        rule: 'greater' or 'less', where the metric's name does not say.
        baseline: The arm that the others are compared with. By default the
            one called 'baseline', else the first one.

    Raises:
        ValueError: If a path holds no run, if two arms have one name, or if
            the metric, its rule or the baseline is not known.
    """
    paths = list(map(str, paths))
    found = _find(paths)
    logged = [run for run in found.source if run and run.logged]
    if not logged:
        broken = next(filter(None, found.problem), None)
        if broken:
            raise ValueError(broken)
        raise ValueError(
            f'there is no curve in {", ".join(paths)}, because no TIMESTAMP/'
            'vis_data/scalars.json with a validation metric is there yet; '
            'give the --work-dir of runs that validate, or wait for one'
            + ''.join(map(_see_log, found.folder)))
    folders = [_named(path)[1] for path in paths]
    plans = {path: plan for path in folders if (plan := read_plan(path))}
    told = {(plan.get('metric'), plan.get('rule')) for plan in plans.values()}
    if metric is None and told:
        if len(told) > 1:
            raise ValueError('it is not known by which metric to compare, '
                             'because these grids were told different ones ('
                             f'{", ".join(str(name) for name, _ in told)}); '
                             'give --metric')
        metric, told_rule = told.pop()
        rule = rule or told_rule
    metric = _choose(metric, logged)
    runs, notes = _without_unfinished(_with_curve(found, metric))
    units = {run.unit for run in runs.source}
    if len(units) > 1:
        raise ValueError('the runs cannot be compared, because some count '
                         'epochs and some iterations; compare equal ones')
    higher = higher_is_better(metric, rule, hook_of(logged[0].config))
    notes = _missing(found, metric) + notes
    arms = list(runs.arm.unique())
    if baseline and baseline not in arms:
        raise ValueError(f"--baseline '{baseline}' is not an arm that was "
                         f'trained; give one of {", ".join(arms)}')
    baseline = baseline or (BASELINE if BASELINE in arms else None)
    if baseline is None:
        baseline = arms[0]
        notes.insert(0, f'Compared with {baseline}, the first arm '
                     '(--baseline names another).')
    return Comparison(runs, _points(runs, metric), metric, units.pop(),
                      'higher' if higher else 'lower', baseline, notes, plans)


def read_plan(folder: str | Path) -> dict | None:
    """What ``tools/compare.py run`` was asked for; None where it wasn't.

    Raises:
        ValueError: If the file is broken.
    """
    path = Path(folder) / 'comparison.json'
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


def name_of(run: pd.Series) -> str:
    """What a note calls a run."""
    return run.arm if pd.isna(run.seed) else f'{run.arm}, seed {run.seed},'


def _find(paths: Sequence[str]) -> pd.DataFrame:
    """The runs in folders: arm, folder and source, a Run or None."""
    places, owners = {}, {}
    for path in paths:
        name, rest = _named(path)
        for arm, folder in _places(Path(rest)):
            if name:
                arm = f'{name}/{arm}' if arm else name
            arm = arm or Path(path).resolve().name
            if owners.setdefault(arm, path) != path and not name:
                raise ValueError(f"several arms are called '{arm}', after "
                                 'their folders; give them names: NAME=DIR')
            # By its folder, so that a run counts once.
            places.setdefault(folder.resolve(), (arm, folder))
    found = pd.DataFrame(places.values(), columns=['arm', 'folder'])
    sources, problems = zip(*map(_read, found.folder))
    return found.assign(source=sources, problem=problems)


def _read(folder: Path) -> tuple[Run | None, str]:
    """A run, or else what is wrong with it."""
    try:
        return read_run(folder), ''
    except ValueError as error:
        return None, str(error)


def _named(path: str) -> tuple[str, str]:
    """The two parts of ``NAME=DIR``; the name is '' where there is none."""
    name, equals, folder = path.partition('=')
    named = equals and name and not Path(path).exists()
    return (name, folder) if named else ('', path)


def _places(folder: Path) -> list[tuple[str, Path]]:
    """The arm ('' for the folder itself) and work directory of each run."""
    if not folder.is_dir():
        raise ValueError(f"there is no run in '{folder}', because it is no "
                         'folder; give a work directory, or the folder of '
                         'several')
    plan = read_plan(folder)
    if plan:
        return [(arm, folder / folder_name(arm) / f'seed_{seed}')
                for arm in plan['arms'] for seed in plan['seeds']]
    own = _runs(folder)
    arms = [] if own else sorted(
        filter(_runs, folder.iterdir()),
        key=lambda path: (path.name != BASELINE, path.name))
    return [(path.name, run) for path in arms for run in _runs(path)] or [
        ('', run) for run in own or [folder]]


def _runs(folder: Path) -> list[Path]:
    """The seeds of an arm's folder, or itself where it is a run."""
    seeds = [path for path in folder.glob('seed_*')
             if path.is_dir() and path.name[5:].isdecimal()]
    is_run = any(folder.glob('*/vis_data/scalars.json'))
    return sorted(seeds, key=lambda path: int(path.name[5:])) or (
        [folder] if is_run else [])


def _choose(metric: str | None, logged: Sequence[Run]) -> str:
    """A metric's full name; without one, the first run's primary metric."""
    if metric is None:
        return primary_metric(logged[0].logged, hook_of(logged[0].config))
    names = (full_name(metric, run.logged) for run in logged)
    found = next(filter(None, names), None)
    if found is None:
        raise ValueError(f"--metric '{metric}' is not what the runs logged; "
                         f'give one of {", ".join(logged[0].logged)}')
    return found


def _missing(found: pd.DataFrame, metric: str) -> list[str]:
    """Notes on the runs that have no curve."""
    notes = []
    for arm, places in found.groupby('arm', sort=False):
        lacking = {folder.name: run for folder, run in zip(
            places.folder, places.source)
            if run is None or metric not in run.logged}
        broken = {folder.name: problem for folder, problem in zip(
            places.folder, places.problem) if problem}
        if len(lacking) == len(places):
            notes.append(f'{arm} has no curve yet, and is not in the table.')
        logs = {folder.name: _see_log(folder) for folder in places.folder}
        notes += [f'{arm}: {name} is left out, as it logged no {metric}.'
                  if run else f'{arm}: {name} has no curve{logs[name]}.'
                  if logs[name] else f'{arm}: {name} was not trained yet.'
                  for name, run in lacking.items()
                  if name not in broken]
        notes += [f'{arm}: {name} is left out, because {problem}.'
                  for name, problem in broken.items()]
    return notes


def _see_log(folder: Path) -> str:
    """Where a run that ``compare.py run`` has begun says what became of it."""
    log = folder.with_suffix('.log')
    return f'; see {log}' if log.exists() else ''


def _with_curve(found: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The runs that logged a metric, with all columns."""
    runs = pd.DataFrame([
        dict(arm=arm, source=run, seed=run.seed, time=run.time,
             memory=run.memory, end=run.max_steps,
             start=run.validations.get(0, {}).get(metric, math.nan),
             last=max(step for step, metrics in run.validations.items()
                      if metric in metrics))
        for arm, run in zip(found.arm, found.source)
        if run and metric in run.logged
    ]).astype(dict(seed='Int64', end=float))
    runs['repeat'] = runs.groupby(['arm', 'seed'], dropna=False).cumcount()
    return runs


def _points(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A validation without the metric is no point, nor is the start."""
    return pd.DataFrame([
        dict(run=number, arm=run.arm, seed=run.seed, step=step,
             value=metrics[metric])
        for number, run in runs.iterrows()
        for step, metrics in run.source.validations.items()
        if metric in metrics and step
    ]).astype(dict(seed='Int64'))


def _without_unfinished(runs: pd.DataFrame
                        ) -> tuple[pd.DataFrame, list[str]]:
    done = runs.end.isna() | (runs['last'] >= runs.end)
    others_done = done.groupby(runs.arm).transform('any')
    notes = [
        f'{name_of(run)} was validated last at {run.source.unit} '
        f'{run["last"]} of {run.end:.0f}; ' + (
            'it is left out, as others of its arm are finished.'
            if others_done[number] else
            'its last point counts as its final one.')
        for number, run in runs[~done].iterrows()
    ]
    return runs[done | ~others_done], notes

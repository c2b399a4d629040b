"""What a reader of a comparison must know besides its numbers."""

import re
from collections.abc import Iterable, Sequence

from mmengine.config import Config

from mmpsw.compare import differences, metrics
from mmpsw.compare.arms import run_name
from mmpsw.compare.runs import Arm, Run, paired_runs

# Lines of mmengine's environment block that say nothing about the machine.
_NOT_MACHINE = re.compile(r'\s*(seed|numpy_random_seed):')
_ENVIRONMENT = re.compile(
    r'^-{60}\n(System environment:\n.*?)\n-{60}$', re.MULTILINE | re.DOTALL)
_MANY = 10  # items in a sentence


def notes(arms: Sequence[Arm], baseline: str) -> list[str]:
    """Sentences on whatever makes the arms less comparable than they look.

    Args:
        arms: All of them, also those without runs.
        baseline: The name of the arm that the others are compared with.
    """
    found = [note for arm in arms for note in arm.notes]
    arms = [arm for arm in arms if arm.runs]
    other = next(arm for arm in arms if arm.name == baseline)
    checks = (_metric, _lengths, _points, _not_a_number, _seeds, _data,
              _environments)
    for check in checks:
        found += check(arms, other)
    return found


def environment(run: Run) -> str | None:
    """The block on machine and versions at the top of a run's log.

    Returns:
        The text; None where there is no log, or one without it.
    """
    if run.config_path is None:
        return None
    for log in sorted(run.config_path.parents[1].glob('*.log')):
        match = _ENVIRONMENT.search(
            log.read_text(encoding='utf-8', errors='replace'))
        if match:
            return match[1]
    return None


def _metric(arms: Sequence[Arm], baseline: Arm) -> Iterable[str]:
    run = arms[0].runs[0]
    others = [metric for metric in run.logged if metric != run.metric]
    if others:
        yield (f'Compared by {run.metric}; also logged: {", ".join(others)} '
               '(--metric compares by one of these).')


def _lengths(arms: Sequence[Arm], baseline: Arm) -> Iterable[str]:
    ends = {arm.name: sorted({run.steps[-1] for run in arm.runs})
            for arm in arms}
    if len({step for steps in ends.values() for step in steps}) > 1:
        unit = baseline.runs[0].unit
        shown = '; '.join(f'{name}: {_listed(steps)}'
                          for name, steps in ends.items())
        yield (f'The runs end at different {unit}s ({shown}): final and best '
               'are not from equally long trainings.')


def _points(arms: Sequence[Arm], baseline: Arm) -> Iterable[str]:
    runs = [run for arm in arms for run in arm.runs]
    steps = {step for run in runs for step in run.steps}
    shared = metrics.shared_steps(run.points for run in runs)
    if steps == shared:
        return
    for arm in arms:
        for run in arm.runs:
            # After its end it is short, which the lengths have told.
            missing = sorted(step for step in steps.difference(run.steps)
                             if step < run.steps[-1])
            if missing:
                yield (f'{run_name(arm.name, run)} has no {run.metric} at '
                       f'{run.unit} {_listed(missing)}, where others have.')
    if shared:
        yield ('area is over the points that all runs have: '
               f'{_listed(sorted(shared))}.')
    else:
        yield ('There is no area, because no point is shared by all runs.')


def _not_a_number(arms: Sequence[Arm], baseline: Arm) -> Iterable[str]:
    for arm in arms:
        for run in arm.runs:
            bad = [step for step, value in run.points if value != value]
            if bad:
                yield (f'{run_name(arm.name, run)} has {run.metric} = nan at '
                       f'{run.unit} {_listed(bad)}.')


def _seeds(arms: Sequence[Arm], baseline: Arm) -> Iterable[str]:
    unknown = [arm.name for arm in arms
               if any(run.seed is None for run in arm.runs)]
    if unknown:
        yield (f'The seeds of {_listed(unknown)} are not known, because no '
               'config sets randomness.seed: these runs are paired with '
               'none.')
    for arm in arms:
        seeds = _known_seeds(arm)
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            yield (f'{arm.name} has several runs of seed {_listed(twice)}: '
                   'its spread is not that of independent runs.')
        if arm is baseline or arm.name in unknown:
            continue
        if sorted(seeds) != sorted(_known_seeds(baseline)):
            pairs = [run.seed for run, _ in paired_runs(arm, baseline)]
            what = (f'differences are over the shared seeds {_listed(pairs)}'
                    if pairs else 'no seed is shared, so that there are no '
                    'paired differences')
            yield (f'{arm.name} has the seeds {_listed(seeds)}, '
                   f'{baseline.name} {_listed(_known_seeds(baseline))}; '
                   f'{what}.')
    if all(len(arm.runs) == 1 for arm in arms):
        yield ('There is one run an arm: nothing is known of the spread over '
               'seeds, and a difference may be chance.')


def _data(arms: Sequence[Arm], baseline: Arm) -> Iterable[str]:
    theirs = _validation_data(baseline.runs[0])
    for arm in arms:
        first = arm.runs[0]
        if first.config_path is None:
            continue
        text = differences.compared_text(first.config_path)
        for run in arm.runs[1:]:
            if differences.compared_text(run.config_path) != text:
                yield (f'{run_name(arm.name, run)} was trained with another '
                       "config than its arm's first run.")
        keys = differences.differing_keys(_validation_data(first), theirs)
        if keys:
            yield (f'{arm.name} was validated on other data than '
                   f'{baseline.name} (val_dataloader.dataset: '
                   f'{_listed(keys)}): their numbers do not mean the same.')


def _validation_data(run: Run) -> dict:
    if run.config_path is None:
        return {}
    config = Config.fromfile(run.config_path, import_custom_modules=False)
    return differences.data_of(config, 'val')


def _environments(arms: Sequence[Arm], baseline: Arm) -> Iterable[str]:
    texts: dict[str, list[str]] = {}
    for arm in arms:
        for run in arm.runs:
            block = environment(run)
            if block is not None:
                lines = [line for line in block.splitlines()
                         if not _NOT_MACHINE.match(line)]
                texts.setdefault('\n'.join(lines), []).append(
                    run_name(arm.name, run).rstrip(','))
    if len(texts) > 1:
        groups = ' | '.join('; '.join(names) for names in texts.values())
        yield (f'The runs come from different environments ({groups}): '
               'compare their times with care.')


def _known_seeds(arm: Arm) -> list[int]:
    return [run.seed for run in arm.runs if run.seed is not None]


def _listed(items: Sequence) -> str:
    shown = ', '.join(str(item) for item in items[:_MANY])
    return shown if len(items) <= _MANY else f'{shown}, ... ({len(items)})'

"""What a reader of a comparison must know besides its numbers."""
import math
import re
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from mmpsw.compare import differences
from mmpsw.compare.comparison import Comparison, name_of
from mmpsw.compare.differences import listed, plain
from mmpsw.compare.runs import Run

__all__ = ['environment', 'notes', 'title']

# Types of models that say nothing but the task.
_GENERIC = ('EncoderDecoder', 'ImageClassifier')
_TASKS = ('cls', 'det', 'seg')  # folders of a data set
# Lines of mmengine's environment block that say nothing about the machine.
_NOT_MACHINE = re.compile(r'\n\s*(?:numpy_random_)?seed:[^\n]*')
_ENVIRONMENT = re.compile(
    r'^-{60}\n(System environment:\n.*?)\n-{60}$', re.MULTILINE | re.DOTALL)


def notes(c: Comparison) -> list[str]:
    """Sentences on whatever makes the arms less comparable than they look."""
    checks = (_runs, _points, _losses, _seeds, _configs, _environments,
              _times)
    return c.notes + [note for check in checks for note in check(c)]


def title(config: Config) -> str | None:
    """What is trained on what: 'RetinaNet (ResNet-50) on coco'."""
    model = plain(config.get('model') or {})
    data = (config.get('val_dataloader') or {}).get('dataset') or {}
    while 'dataset' in data:  # a wrapper
        data = data['dataset']
    # Of data/digits/det it is the second.
    root = next((part for part in reversed(Path(str(
        data.get('data_root') or '')).parts) if part not in _TASKS), '')
    backbone = model.get('backbone') or {}
    names = [name for name in (
        model.get('type'), (model.get('decode_head') or {}).get('type'),
        '-'.join(str(backbone[key]) for key in ('type', 'depth')
                 if key in backbone)) if name and name not in _GENERIC]
    if not names or not (root or data.get('type')):
        return None
    more = f' ({", ".join(names[1:])})' if names[1:] else ''
    return f'{names[0]}{more} on {root or plain(data)["type"]}'


def environment(run: Run) -> str | None:
    """The block on machine and versions in a run's log; None without one."""
    for log in sorted(run.log_dir.glob('*.log')):
        match = _ENVIRONMENT.search(
            log.read_text(encoding='utf-8', errors='replace'))
        if match:
            return match[1]
    return None


def _runs(c: Comparison) -> Iterator[str]:
    others = [name for name in c.runs.source.iloc[0].logged
              if name != c.metric]
    if others:
        yield (f'Compared by {c.metric}; also logged: {", ".join(others)} '
               '(--metric compares by one of these).')
    if c.runs['last'].nunique() > 1:
        ends = '; '.join(f'{arm}: {listed(sorted(set(lasts)))}' for arm, lasts
                         in c.runs.groupby('arm', sort=False)['last'])
        yield (f'The runs end at different {c.unit}s ({ends}): final and best '
               'are not from equally long runs.')


def _points(c: Comparison) -> Iterator[str]:
    runs_at = c.points.groupby('step').run.nunique()
    for number, points in c.points.groupby('run'):
        run = c.runs.loc[number]
        bad = points.step[points.value.isna()]
        if len(bad):
            yield (f'{name_of(run)} has {c.metric} = nan at {c.unit} '
                   f'{listed(list(bad))}.')
        # After its end it is short, which the lengths have told.
        gaps = [step for step in runs_at.index.difference(points.step)
                if step < run['last']]
        if gaps:
            yield (f'{name_of(run)} has no {c.metric} at {c.unit} '
                   f'{listed(gaps)}, where others have.')
    shared = runs_at.index[runs_at == len(c.runs)]
    if not len(shared):
        yield 'There is no area, because no point is shared by all runs.'
    elif len(shared) < len(runs_at):
        yield ('area is over the points that all runs have: '
               f'{listed(list(shared))}.')


def _losses(c: Comparison) -> Iterator[str]:
    for _, run in c.runs.iterrows():
        logged = [line for line in run.source.training if 'loss' in line]
        bad = [line['iter'] for line in logged
               if not math.isfinite(line['loss'])]
        if bad:
            yield (f'{name_of(run)} has a loss that is not finite from '
                   f'iteration {bad[0]} on: {len(bad)} of the {len(logged)} '
                   'that were logged.')


def _seeds(c: Comparison) -> Iterator[str]:
    unknown = c.runs.arm[c.runs.seed.isna()].unique()
    if len(unknown):
        yield (f'The seeds of {listed(unknown)} are not known, because no '
               'config sets randomness.seed: these runs are paired with none.')
    seeds = {arm: sorted(of_arm.dropna()) for arm, of_arm
             in c.runs.groupby('arm', sort=False).seed}
    theirs = seeds[c.baseline]
    for arm, ours in seeds.items():
        twice = sorted({seed for seed in ours if ours.count(seed) > 1})
        if twice:
            yield (f'{arm} has several runs of seed {listed(twice)}: its '
                   'spread is not that of independent runs.')
        if arm not in unknown and ours != theirs:
            both = sorted({*ours} & {*theirs})
            what = (f'differences are over the shared seeds {listed(both)}'
                    if both else 'no seed is shared, so that differences are '
                    'those of the means')
            yield (f'{arm} has the seeds {listed(ours)}, {c.baseline} '
                   f'{listed(theirs)}; {what}.')


def _configs(c: Comparison) -> Iterator[str]:
    for arm, of_arm in c.runs.groupby('arm', sort=False):
        first = of_arm.source.iloc[0]
        settings = differences.lines(first.config)
        for _, run in of_arm.iloc[1:].iterrows():
            if differences.lines(run.source.config) != settings:
                yield (f'{name_of(run)} was trained with another config than '
                       "its arm's first run.")
        keys = differences.differing_keys(
            *(differences.data_of(run.config, 'val')
              for run in (first, c.first)))
        if keys:
            yield (f'{arm} was validated on other data than {c.baseline} '
                   f'(val_dataloader.dataset: {listed(keys)}): their numbers '
                   'do not mean the same.')


def _environments(c: Comparison) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for _, run in c.runs.iterrows():
        block = environment(run.source)
        if block is not None:
            groups.setdefault(_NOT_MACHINE.sub('', block), []).append(
                name_of(run).rstrip(','))
    if len(groups) > 1:
        shown = ' | '.join('; '.join(names) for names in groups.values())
        yield (f'The runs come from different environments ({shown}): compare '
               'their times with care.')


def _times(c: Comparison) -> Iterator[str]:
    carried = [arm for plan in c.plans.values()
               for arm in plan.get('passengers', ())]
    if carried and c.of_arm(c.baseline).time.notna().any():
        yield (f"s/iter of {c.baseline} includes what {', '.join(carried)} "
               'took, which rode along.')

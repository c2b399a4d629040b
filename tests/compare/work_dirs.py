"""Work directories as mmengine writes them, made by hand."""
import json

from mmpsw.configs import folder_name

CONFIG = """train_cfg = dict(by_epoch=True, max_epochs={epochs})
randomness = dict(seed={seed})
work_dir = '{folder}'
"""
LOG = """2026/01/01 00:00:00 - mmengine - INFO -
------------------------------------------------------------
System environment:
    sys.platform: linux
    numpy_random_seed: {seed}
    PyTorch: {torch}

Runtime environment:
    seed: {seed}
    GPU number: 1
------------------------------------------------------------

2026/01/01 00:00:01 - mmengine - INFO - Config:
"""


def session(work_dir, stamp, lines, config='', log=''):
    """A timestamp directory with the given lines; returns scalars.json."""
    folder = work_dir / stamp / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'config.py').write_text(config)
    (work_dir / stamp / f'{stamp}.log').write_text(log)
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (folder / 'scalars.json').write_text(text)
    return folder / 'scalars.json'


def train_line(iteration, **others):
    return dict(loss=1.0, iter=iteration, step=iteration, **others)


def val_line(step, **metrics):
    return dict(**metrics, data_time=0.0, time=9.0, step=step)


def trained(work_dir, values, seed=None, epochs=None, torch='2.11', extra='',
            metric='acc', **cost):
    """A run whose validations had these values; None where it had none.

    Args:
        epochs: What it was to train; by default what it did.
    """
    lines = [train_line(1, **cost), train_line(2, **cost)]
    lines += [val_line(step) if value is None
              else val_line(step, **{metric: value})
              for step, value in enumerate(values, start=1)]
    config = CONFIG.format(epochs=epochs or len(values), seed=seed,
                           folder=work_dir)
    session(work_dir, '20260101_000000', lines, config + extra,
            LOG.format(seed=seed, torch=torch))
    return work_dir


def grid(work, curves, torch='2.11', **others):
    """WORK/ARM/seed_N from {arm: {seed: values}}, with comparison.json."""
    for arm, seeds in curves.items():
        for seed, values in seeds.items():
            trained(work / folder_name(arm) / f'seed_{seed}', values, seed,
                    torch=torch)
    plan = dict(config='configs/cls/toy.py', arms={arm: arm for arm in curves},
                seeds=sorted({s for seeds in curves.values() for s in seeds}),
                cfg_options={})
    (work / 'comparison.json').write_text(json.dumps({**plan, **others}))
    return work

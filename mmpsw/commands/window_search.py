"""Which of a run's last checkpoints have the best mean, by validation.

The checkpoints of a run with psw are means of whole periods, so that the mean
of the last k of them is that of the last k periods' updates, exactly where
the periods have equally many.
"""
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.figure import Figure
from mmengine.config import Config
from torch import nn

from mmpsw import checkpoints
from mmpsw.commands import checks, launch
from mmpsw.compare import plots, runs
from mmpsw.compare.differences import data_of

__all__ = ['best_window', 'check', 'windows']

Held = Callable[[Path, Any], dict[str, Any]]


def windows(most: int) -> list[int]:
    """1, 2, 4, ..., and ``most`` itself."""
    return sorted({2**i for i in range(most.bit_length())} | {most})


def check(cfg: Config, picture: Path, overwrite: bool) -> None:
    """A ValueError where a config does not validate, or has no data, or the
    picture exists."""
    plots.check_format(picture, overwrite)
    for key in ('val_dataloader', 'val_evaluator'):
        if not cfg.get(key):
            raise ValueError(
                f"--search '{cfg.filename}' has no {key}, by which the means "
                'could be compared; add one')
    checks.check_data(cfg, 'val')


def best_window(paths: Sequence[Path], cfg: Config, held: Held,
                picture: Path) -> int:
    """Validates the means of the last 1, 2, 4, ... checkpoints.

    It prints the metric of each, which is best and on which data, and draws
    the metric against the window.

    Args:
        paths: The checkpoints in their order.
        cfg: The config that they were trained with, which is changed.
        held: Takes the weights out of a checkpoint.
        picture: The file to draw.

    Returns:
        int: How many of the last checkpoints have the best mean; the fewest
        of those that are equal.

    Raises:
        ValueError: They do not fit the config's model, or nothing is logged.
    """
    # Hooks of a training: an EMAHook would validate its own average.
    cfg.update(custom_hooks=[], load_from=None, resume=False)
    logged = {}
    with TemporaryDirectory() as folder:
        launch.set_up(cfg, Namespace(work_dir=folder, launcher='none'))
        runner = launch.build_runner(cfg)
        for last in windows(len(paths)):
            _load(runner.model, *checkpoints.mean(paths[-last:], held), cfg)
            logged[last] = runner.val()
    hook = runs.hook_of(cfg)
    name = runs.primary_metric([*map(str, logged[1])] or [''], hook)
    values = {last: metrics[name] for last, metrics in logged.items()
              if name in metrics}
    if not values:
        raise ValueError(f"--search '{cfg.filename}' logs no metric; give a "
                         'config with another val_evaluator')
    better = max if runs.higher_is_better(name, None, hook) else min
    best = better(values, key=values.__getitem__)
    count = len(runner.val_dataloader.dataset)
    for last, value in values.items():
        print(f'the last {last}: {name} {value:.4f}'
              + (', the best' if last == best else ''))
    print(f'chosen on the {count} images of val_dataloader'
          + (', which are those of test_dataloader too: no data are left '
             'that did not choose' if data_of(cfg, 'val') == data_of(
                 cfg, 'test') else ': report the result on others'))
    plots.save(_draw(values, best, f'validation {name}'), picture)
    return best


def _load(model: nn.Module, weights: dict, meta: dict, cfg: Config) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        difference = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"the checkpoints do not fit the model of --search "
            f"'{cfg.filename}' ({difference}); give the config that they were "
            'trained with') from error


def _draw(values: dict[int, float], best: int, label: str) -> Figure:
    figure = Figure(figsize=(5, 3), dpi=150, layout='constrained')
    axes = figure.subplots()
    axes.plot(values.keys(), values.values(), 'o-', markersize=4)
    axes.annotate('the best', (best, values[best]), (0, -14), ha='center',
                  textcoords='offset points')
    axes.set_xscale('log', base=2)
    axes.set_xticks([*values], [f'{last}' for last in values])
    axes.margins(y=0.2)
    axes.set_xlabel('how many of the last checkpoints are averaged')
    axes.set_ylabel(label)
    return figure

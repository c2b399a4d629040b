"""Draws the training loss on the line from the live weights to their mean.

    loss_line.py CONFIG epoch_3.pth:live epoch_3.pth    along (1 - t) A + t B

A word behind the file's name takes other weights of a checkpoint of psw than
those to deploy:

    epoch_3.pth             what is deployed
    epoch_3.pth:live        psw: where training continues
    iter_50.pth:mean        saved inside of a window: the running mean
    epoch_3.pth:previous    PSWM, psw: the last period's mean

The loss is that of the same training batches at each point. Batch norm uses
its running statistics, which belong to the weights that were saved, so that a
part of a rise is their mismatch. With --recalibrate they are recomputed at
each point, for twice the time: the loss is then that of the weights alone.
"""
import argparse
import contextlib
import copy
import io
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import islice
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.runner import Runner, set_random_seed
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from mmpsw import checkpoints, configs
from mmpsw.commands import checks, launch, options
from mmpsw.compare.runs import hook_of, primary_metric
from mmpsw.engine.averaging import parts
from mmpsw.methods.averaging import recalibrate
from mmpsw.models import build_model, losses

COLORS = ('#D55E00', '#0072B2')  # which the colour-blind can tell apart

Weights = Mapping[str, Tensor]
Loss = Callable[[], float]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: run(args))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = argparse.ArgumentParser(
        prog='loss_line.py', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_config(parser)
    add = parser.add_argument
    add('checkpoints', nargs=2, metavar='CHECKPOINT',
        help='the weights at t = 0 and t = 1')
    add('--points', type=options.at_least(2), default=31,
        help='values of t from -0.25 to 1.25, beside 0 and 1 (default: '
        '%(default)s)')
    add('--metric', action='store_true',
        help="also validate at each point, by the config's primary metric")
    add('--batches', type=options.at_least(1), default=8,
        help='training batches for each loss (default: %(default)s)')
    add('--recalibrate', action='store_true',
        help='recompute batch-norm statistics at each point')
    add('--seed', type=int, default=0, help='of the batches (default: 0)')
    options.add_out(parser, 'work_dirs/CONFIG/loss_line')
    options.add_cfg_options(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """The loss, and a metric, on the line between two checkpoints."""
    cfg = configs.load_config(args.config)
    options.merge_options(cfg, args)
    for path, _ in map(split_name, args.checkpoints):
        if not Path(path).is_file():
            raise FileNotFoundError(f"checkpoint '{path}' does not exist; "
                                    'give the path of a .pth file')
    launch.set_dataloader_defaults(cfg, launch.has_accelerator())
    phases = ['train', 'val'] if args.metric else ['train']
    for phase in phases:
        if cfg.get(f'{phase}_dataloader') is None:
            raise ValueError(f"config '{args.config}' has no "
                             f'{phase}_dataloader; give one that has')
    checks.check_data(cfg, *phases)
    MMLogger.get_current_instance().setLevel('WARNING')
    stem = Path(configs.resolve_config(args.config)).stem
    out = options.out_folder(args.out or Path('work_dirs', stem, 'loss_line'),
                             ['line.*'], args.overwrite)
    model = build_model(cfg)
    a, b = (load_weights(name, cfg, model) for name in args.checkpoints)
    loss = training_loss(model, fixed_batches(cfg, args.batches, args.seed),
                         args.recalibrate, args.seed)
    ts = np.unique([*np.linspace(-0.25, 1.25, args.points).round(10), 0., 1.])
    points = line(
        model, a, b, track(ts.tolist(), 'line', console=Console(stderr=True)),
        loss, validation(cfg, model) if args.metric else dict)
    points.to_csv(out / 'line.csv', index=False)
    shown, logged = ['loss'], list(points.columns[2:])
    if logged:
        shown.append(primary_metric(logged, hook_of(cfg)))
    norms = 'recalibrated' if args.recalibrate else 'as saved'
    draw(points[['t', *shown]], args.checkpoints,
         f'Training loss, {args.batches} batches, batch norm {norms}'
         ).savefig(out / 'line.png')
    print(pd.concat([
        points[points.t == 0].assign(weights=args.checkpoints[0]),
        points[points.t == 1].assign(weights=args.checkpoints[1]),
        points.nsmallest(1, 'loss').assign(weights='lowest loss'),
    ])[['weights', 't', *shown]].to_string(
        index=False, float_format='{:.4g}'.format))
    print('highest rise above the straight line between the ends: '
          f'{barrier(points):.4g}')
    print(out / 'line.csv', out / 'line.png', sep='\n')


def line(model: nn.Module, a: Weights, b: Weights, ts: Iterable[float],
         loss: Loss, metrics: Callable[[], dict] = dict) -> pd.DataFrame:
    """The loss, and metrics, at the points ``(1 - t) a + t b``.

    Returns:
        DataFrame: t, loss, and each metric that was logged at some point; NaN
        where it was not (mmdet logs none while nothing is found).
    """
    parameters = dict(model.named_parameters())
    rows = []
    for t in ts:
        model.load_state_dict(interpolate(a, b, t, parameters))
        rows.append(dict(t=t, loss=loss(), **metrics()))
    return pd.DataFrame(rows)


def interpolate(a: Weights, b: Weights, t: float,
                parameters: Container[str]) -> dict[str, Tensor]:
    """``(1 - t) a + t b``; at the ends bit-equal, integers are those of a.

    Beyond [0, 1] parameters are extrapolated, and buffers are those of the
    nearer end: an extrapolated variance may be negative.
    """
    inside = min(max(t, 0.0), 1.0)
    return {
        name: torch.lerp(value, b[name], t if name in parameters else inside)
        if value.is_floating_point() else value
        for name, value in a.items()
    }


def barrier(points: pd.DataFrame) -> float:
    """The highest rise of the loss above the straight line from t = 0 to 1.

    0: nothing separates the ends (Frankle et al., Linear Mode Connectivity
    and the Lottery Ticket Hypothesis, ICML 2020).
    """
    inside = points[points.t.between(0, 1)].set_index('t').loss
    straight = inside[0.] + (inside[1.] - inside[0.]) * inside.index
    return (inside - straight).max()


def fixed_batches(cfg: Config, count: int, seed: int) -> list[Any]:
    """The first training batches of an epoch, drawn once from the seed.

    Raises:
        ValueError: The data set holds less than one.
    """
    loader = Runner.build_dataloader(
        dict(cfg.train_dataloader, num_workers=0, persistent_workers=False,
             prefetch_factor=None), seed=seed)
    set_random_seed(seed)
    batches = list(islice(loader, count))
    if not batches:
        raise ValueError('the training data set gives no batch, because it '
                         'holds less than one; set a smaller --cfg-options '
                         'train_dataloader.batch_size')
    return batches


def training_loss(model: nn.Module, batches: Sequence[Any],
                  recalibrated: bool = False, seed: int = 0) -> Loss:
    """The mean loss over batches of the weights that are in a model.

    Dropout is off, and what is random in the loss itself (the choice of
    boxes, say) is drawn from the same seeds at each call: equal weights give
    equal losses.
    """

    def forward(batch: Any) -> dict[str, Tensor]:
        return losses(model, copy.deepcopy(batch))  # some models write into it

    @torch.no_grad()
    def loss() -> float:
        model.train()
        if recalibrated:
            set_random_seed(seed)
            recalibrate(model, forward, batches)
        # Layers (batch norm, dropout) evaluate; the models around them train,
        # as many of them compute what their loss needs only then.
        for module in model.modules():
            if (isinstance(module, nn.MultiheadAttention)
                    or not any(module.children())):
                module.eval()
        total = 0.0
        for index, batch in enumerate(batches):
            set_random_seed(seed + index)
            total += model.parse_losses(forward(batch))[0].item()
        return total / len(batches)

    return loss


def validation(cfg: Config,
               model: nn.Module) -> Callable[[], dict[str, float]]:
    """The config's validation metrics of the weights that are in a model."""
    loader = Runner.build_dataloader(dict(cfg.val_dataloader), seed=0)
    evaluator = Evaluator(cfg.val_evaluator)
    evaluator.dataset_meta = getattr(loader.dataset, 'metainfo', None)

    @torch.no_grad()
    def validate() -> dict[str, float]:
        model.eval()
        # Without the tables that evaluators print, one for each point.
        with contextlib.redirect_stdout(io.StringIO()):
            for batch in loader:
                evaluator.process(model.val_step(batch), batch)
            metrics = evaluator.evaluate(len(loader.dataset))
        return {name: float(value) for name, value in metrics.items()
                if isinstance(value, (Number, Tensor))}

    return validate


def load_weights(name: str, cfg: Config, model: nn.Module) -> Weights:
    """The state dict that a checkpoint's name, with ``:part``, stands for.

    Raises:
        ValueError: It holds no such weights, or those of another model.
    """
    path, part = split_name(name)
    held = parts.weights_of(path, checkpoints.read(path), part)
    try:
        model.load_state_dict(held)
    except RuntimeError as error:
        difference = str(error).splitlines()[-1].strip()
        raise ValueError(f"'{path}' does not fit the model of "
                         f"'{cfg.filename}' ({difference}); give the config "
                         'that it was trained with') from error
    for key, param in model.named_parameters():
        if not torch.isfinite(param).all():
            raise ValueError(f"'{name}' has values in '{key}' that are not "
                             'finite; give other weights')
    return {key: value.clone() for key, value in model.state_dict().items()}


def split_name(name: str) -> tuple[str, str | None]:
    """``('epoch_3.pth', 'live')`` for ``epoch_3.pth:live``."""
    path, _, part = name.rpartition(':')
    return (path, part) if path and part in parts.PARTS else (name, None)


def draw(points: pd.DataFrame, names: Sequence[str], title: str) -> Figure:
    """The columns of ``points`` against its t, each in a panel."""
    columns = points.columns[1:]
    figure = Figure(figsize=(8, 1.2 + 3.2 * len(columns)), dpi=150,
                    layout='constrained')
    panels = figure.subplots(len(columns), sharex=True, squeeze=False)[:, 0]
    for axes, column, color in zip(panels, columns, COLORS):
        axes.plot(points.t, points[column], color=color, marker='o',
                  markersize=4)
        for end in (0, 1):
            axes.axvline(end, color='gray', linewidth=1, linestyle=':')
        axes.set_ylabel('training loss' if column == 'loss' else column)
        axes.grid(color='#EEEEEE')
    # Where the loss beyond the ends dwarfs that between.
    if 0 < 20 * points.loss.min() < points.loss.max():
        panels[0].set_yscale('log')
    panels[-1].set_xlabel(f't     (0: {names[0]},  1: {names[1]})')
    figure.suptitle(title)
    return figure


if __name__ == '__main__':
    sys.exit(main())

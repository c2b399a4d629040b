"""Draws the training loss around trained weights.

    loss_surface.py line CONFIG A.pth B.pth    along (1 - t) A + t B
    loss_surface.py plane CONFIG A.pth ...     over two random directions

A checkpoint of a PSW run holds more weights than those to deploy, which are
named by a word behind the file's name:

    epoch_3.pth             what is deployed
    epoch_3.pth:live        control arm: what training goes on from
    iter_50.pth:mean        saved inside of a window: the running mean
    epoch_3.pth:previous    PSWM, control arm: the last period's mean

The loss is that of the same training batches at each point. Batch norm uses
its running statistics, which belong to the weights that were saved, so that a
part of a rise is their mismatch. With --recalibrate they are recomputed at
each point, for twice the time: the loss is then that of the weights alone.
"""
import argparse
import contextlib
import copy
import io
import math
import os
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import islice
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.runner import Runner, set_random_seed
from rich.console import Console
from rich.progress import track
from scipy.optimize import brentq
from torch import Tensor, nn

from mmpsw import checkpoints, configs
from mmpsw.commands import checks, launch, options
from mmpsw.commands.options import out_folder
from mmpsw.compare.runs import primary_metric
from mmpsw.engine.averaging import parts
from mmpsw.methods.averaging import recalibrate
from mmpsw.models import build_model, losses

ORANGE, BLUE = '#D55E00', '#0072B2'  # which the colour-blind can tell apart

Weights = Mapping[str, Tensor]
Loss = Callable[[], float]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: args.command(args))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = argparse.ArgumentParser(
        prog='loss_surface.py', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar='line|plane')
    line = commands.add_parser('line', help=run_line.__doc__,
                               description=run_line.__doc__)
    options.add_config(line)
    line.add_argument('checkpoints', nargs=2, metavar=('A.pth', 'B.pth'),
                      help='the weights at t = 0 and t = 1')
    line.add_argument('--begin', type=float, default=-0.25,
                      help='the first t (default: %(default)s)')
    line.add_argument('--end', type=float, default=1.25,
                      help='the last t (default: %(default)s)')
    line.add_argument('--metric', nargs='?', const='', metavar='NAME',
                      help='also validate at each point; NAME is drawn, or '
                      "the config's primary metric")
    plane = commands.add_parser('plane', description=run_plane.__doc__,
                                help='the loss on a plane around each '
                                'checkpoint, and the width of the minimum')
    options.add_config(plane)
    plane.add_argument('checkpoints', nargs='+', metavar='A.pth',
                       help='the weights; all are drawn on one scale')
    plane.add_argument('--extent', type=_positive, default=1.0,
                       help='the longest step, in filter norms (default: 1)')
    plane.add_argument('--directions', type=options.at_least(2), default=5,
                       help='random directions for the width (default: 5)')
    plane.add_argument('--rise', type=_positive,
                       help='by how much the loss must have risen (default: '
                       "as much as the first checkpoint's loss)")
    for sub, command, points in ((line, run_line, 31), (plane, run_plane, 15)):
        sub.set_defaults(command=command)
        sub.add_argument('--points', type=options.at_least(3), default=points,
                         help='values of t, or steps along each direction '
                         '(default: %(default)s)')
        sub.add_argument('--batches', type=options.at_least(1), default=8,
                         help='training batches for each loss (default: 8)')
        sub.add_argument('--recalibrate', action='store_true',
                         help='recompute batch-norm statistics at each point')
        sub.add_argument('--seed', type=int, default=0,
                         help='of the batches and directions (default: 0)')
        options.add_out(sub, 'work_dirs/CONFIG/loss_line or loss_plane')
        options.add_cfg_options(sub)
    args = parser.parse_args(argv)
    if args.command is run_line and not args.begin < args.end:
        line.error(f'--begin {args.begin} is not before --end {args.end}')
    return args


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'{text} is not a number > 0')
    return value


def run_line(args: argparse.Namespace) -> None:
    """The loss, and a metric, on the line between two checkpoints."""
    cfg, out = start(args, 'loss_line', 'line.*')
    model = build_model(cfg)
    a, b = (load_weights(name, cfg, model) for name in args.checkpoints)
    loss = training_loss(model, fixed_batches(cfg, args.batches, args.seed),
                         args.recalibrate, args.seed)
    metrics = dict
    if args.metric is not None:
        metrics = validation(cfg, model)
        logged = metrics()  # of B: a wrong name costs no long work
        if logged and not matching(args.metric, logged):
            raise ValueError(f"--metric '{args.metric}' is not a metric of "
                             f'the config; give one of {", ".join(logged)}')
    ends = [t for t in (0., 1.) if args.begin <= t <= args.end]
    ts = np.linspace(args.begin, args.end, args.points).round(10)
    ts = np.unique(np.append(ts, ends)).tolist()
    points = line(model, a, b, tracked(ts, 'line'), loss, metrics)
    points.to_csv(out / 'line.csv', index=False)
    shown = ['loss']
    if found := matching(args.metric, points.columns[2:]):
        hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
        shown.append(primary_metric(found, hook))
    elif args.metric is not None:
        print('No validation logged such a metric: only the loss is drawn.')
    names = short_names(args.checkpoints)
    draw_line(points[['t', *shown]], names, title(args), out / 'line.png')
    print_table(pd.concat([
        points[points.t == 0].assign(weights=names[0]),
        points[points.t == 1].assign(weights=names[1]),
        points.nsmallest(1, 'loss').assign(weights='lowest loss'),
    ])[['weights', 't', *shown]])
    if len(ends) == 2:
        print('highest rise above the straight line between the ends: '
              f'{barrier(points):.4g}')
    print(out / 'line.csv', out / 'line.png', sep='\n')


def run_plane(args: argparse.Namespace) -> None:
    """The loss on a plane around each checkpoint, and the minimum's width.

    Over two filter-normalised random directions (Li et al. 2018). The width
    is the mean distance along random directions, both senses of each, at
    which the loss has risen by --rise.
    """
    cfg, out = start(args, 'loss_plane', 'plane.*', 'widths.csv')
    model = build_model(cfg)
    centers = [load_weights(name, cfg, model) for name in args.checkpoints]
    loss = training_loss(model, fixed_batches(cfg, args.batches, args.seed),
                         args.recalibrate, args.seed)
    steps = np.linspace(-args.extent, args.extent, args.points)
    planes, widths, rise = [], [], args.rise
    for name, center in zip(short_names(args.checkpoints), centers):
        rise = rise or loss_at(model, loss, center)
        model.load_state_dict(center)
        directions = [random_direction(model, args.seed * 1000 + index)
                      for index in range(args.directions)]
        rays = [(sign, d) for d in directions for sign in (1, -1)]
        widths.append(dict(checkpoint=name, **width(
            model, loss, center, tracked(rays, f'{name}: width'), rise,
            args.extent)))
        grid = pd.DataFrame([(name, x, y) for y in steps for x in steps],
                            columns=['checkpoint', 'x', 'y'])
        planes.append(grid.assign(loss=[
            loss_at(model, loss, center, *zip(xy, directions)) for xy in
            tracked(grid[['x', 'y']].to_numpy(), f'{name}: plane')]))
    pd.concat(planes).to_csv(out / 'plane.csv', index=False)
    table = pd.DataFrame(widths)
    table.to_csv(out / 'widths.csv', index=False)
    draw_planes(planes, table, title(args), out / 'plane.png')
    print_table(table)
    print(f'width: mean distance, in filter norms, at which the loss is '
          f'higher by {rise:.4g}; open_rays did not rise so far up to the '
          'limit (take a smaller --rise, or a larger --extent)')
    print(*(out / name for name in ('plane.csv', 'widths.csv', 'plane.png')),
          sep='\n')


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


def random_direction(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A filter-normalised random direction for the weights in a model.

    ``d_j <- d_j / ||d_j|| * ||w_j||`` for each filter j of each tensor (Li et
    al., Visualizing the Loss Landscape of Neural Nets, NeurIPS 2018), because
    a network computes the same when a filter is scaled up and the next batch
    norm scales it down. A step of length 1 moves each filter by its own norm.
    Biases and norms, which have one dimension, stay. The draws depend on the
    seed and the shapes alone: they are the same around several checkpoints.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, param in model.named_parameters():
        if param.requires_grad and param.ndim > 1:
            weight = param.detach()
            draws = torch.randn(weight.shape, generator=generator).to(weight)
            scale = _filter_norms(weight) / _filter_norms(draws)
            direction[name] = draws * scale
    return direction


def _filter_norms(weight: Tensor) -> Tensor:
    across = tuple(range(1, weight.ndim))
    return torch.linalg.vector_norm(weight, dim=across, keepdim=True)


@torch.no_grad()
def loss_at(model: nn.Module, loss: Loss, center: Weights,
            *steps: tuple[float, Weights]) -> float:
    """The loss at ``center + sum of length * direction``."""
    model.load_state_dict(center)
    for length, direction in steps:
        for name, vector in direction.items():
            model.get_parameter(name).add_(vector, alpha=length)
    return loss()


def width(model: nn.Module, loss: Loss, center: Weights,
          rays: Iterable[tuple[int, Weights]], rise: float,
          limit: float) -> dict[str, float]:
    """The distance along rays (sense, direction) at which the loss has risen.

    Returns:
        Dict[str, float]: ``loss`` in the centre (the depth), ``rise``, mean
        ``width`` and ``std`` over the ``rays``, of which ``open_rays`` have
        not risen by that much up to ``limit``, and count with it.
    """
    depth = loss_at(model, loss, center)

    def radius(sense: int, direction: Weights) -> float:
        return rise_radius(
            lambda r: loss_at(model, loss, center, (sense * r, direction))
            - depth, rise, limit)

    radii = [radius(*ray) for ray in rays]
    return dict(loss=depth, rise=rise, width=np.mean(radii),
                std=np.std(radii, ddof=1), rays=len(radii),
                open_rays=sum(r >= limit for r in radii), limit=limit)


def rise_radius(rise_at: Callable[[float], float], rise: float,
                limit: float) -> float:
    """The first radius at which a function, 0 at 0, has risen by ``rise``.

    It is looked for in each of ten steps to the limit, which is the result
    where there is none. A value that is not a number has risen.
    """

    def missing(radius: float) -> float:
        value = rise_at(radius)
        return rise - value if value < 2 * rise else -rise

    inner = 0.0
    for outer in np.linspace(0, limit, 11)[1:]:
        if missing(outer) <= 0:
            return brentq(missing, inner, outer, xtol=limit / 500)
        inner = outer
    return limit


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


def matching(wanted: str | None, logged: Iterable[str]) -> list[str]:
    """Metrics with a name, whole or its last part; all for an empty one."""
    return [name for name in logged
            if wanted in ('', name, name.split('/')[-1])]


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


def draw_line(points: pd.DataFrame, names: Sequence[str], title: str,
              path: Path) -> None:
    """Draw the columns of ``points`` against its t, each in a panel."""
    columns = points.columns[1:]
    figure = Figure(figsize=(8, 1.2 + 3.2 * len(columns)), dpi=150,
                    layout='constrained')
    panels = figure.subplots(len(columns), sharex=True, squeeze=False)[:, 0]
    for axes, column, color in zip(panels, columns, (ORANGE, BLUE)):
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
    figure.savefig(path)


def draw_planes(planes: Sequence[pd.DataFrame], widths: pd.DataFrame,
                title: str, path: Path) -> None:
    """Draw the loss around several weights, on one scale of colours."""
    columns = min(len(planes), 4)
    rows = math.ceil(len(planes) / columns)
    figure = Figure(figsize=(3.6 * columns + 1, 3.7 * rows + 0.6), dpi=150,
                    layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True,
                             sharey=True)
    levels, norm = color_levels(pd.concat(planes).loss.to_numpy())
    for axes, points, row in zip(panels.flat, planes, widths.itertuples()):
        grid = points.pivot(index='y', columns='x', values='loss')
        filled = axes.contourf(
            grid.columns, grid.index,
            grid.fillna(np.inf).clip(levels[0], levels[-1]), levels,
            norm=norm, cmap='cividis_r')
        edge = row.loss + row.rise
        if points.loss.min() < edge < points.loss.max():
            axes.contour(grid.columns, grid.index, grid, [edge],
                         colors=ORANGE)
        axes.plot(0, 0, '+', color=ORANGE, markersize=10)
        axes.set_title(f'{row.checkpoint}\nloss {row.loss:.3g}, width '
                       f'{"> " * (row.open_rays > 0)}{row.width:.2g}',
                       fontsize=9)
        ticks = [points.x.min(), 0, points.x.max()]
        axes.set(aspect='equal', xticks=ticks, yticks=ticks)
    for axes in panels.flat[len(planes):]:
        axes.set_visible(False)
    figure.colorbar(filled, ax=panels, label='training loss', format='%.2g',
                    ticks=levels[::2])
    figure.supxlabel('random direction 1, in filter norms     (orange: the '
                     f'loss is {widths.rise[0]:.2g} higher)', fontsize=9)
    figure.supylabel('random direction 2', fontsize=9)
    figure.suptitle(title)
    figure.savefig(path)


def color_levels(losses: np.ndarray) -> tuple[np.ndarray, LogNorm | None]:
    """From the lowest loss to the usual highest, of equal ratio."""
    losses = losses[np.isfinite(losses)]
    low, high = losses.min(), np.quantile(losses, 0.98)
    high = max(high, low + 0.01 * abs(low) + 1e-9)
    if low > 0:
        return np.geomspace(low, high, 17), LogNorm(low, high)
    return np.linspace(low, high, 17), None


def start(args: argparse.Namespace, kind: str,
          *files: str) -> tuple[Config, Path]:
    """The config, and the folder for the results; the checkpoints exist."""
    cfg = configs.load_config(args.config)
    options.merge_options(cfg, args)
    for path, _ in map(split_name, args.checkpoints):
        if not Path(path).is_file():
            raise FileNotFoundError(f"checkpoint '{path}' does not exist; "
                                    'give the path of a .pth file')
    launch.set_dataloader_defaults(cfg, launch.has_accelerator())
    validates = getattr(args, 'metric', None) is not None
    phases = ['train', 'val'] if validates else ['train']
    for phase in phases:
        if cfg.get(f'{phase}_dataloader') is None:
            raise ValueError(f"config '{args.config}' has no "
                             f'{phase}_dataloader; give one that has')
    checks.check_data(cfg, *phases)
    MMLogger.get_current_instance().setLevel('WARNING')
    stem = Path(configs.resolve_config(args.config)).stem
    return cfg, out_folder(args.out or Path('work_dirs', stem, kind), files,
                           args.overwrite)


def short_names(paths: Sequence[str]) -> list[str]:
    """The paths below the folder that they have in common."""
    common = os.path.commonpath([Path(path).absolute().parent
                                 for path in paths])
    return [os.path.relpath(path, common) for path in paths]


def title(args: argparse.Namespace) -> str:
    """What was measured."""
    norms = 'recalibrated' if args.recalibrate else 'as saved'
    return f'Training loss, {args.batches} batches, batch norm {norms}'


def tracked(items: Sequence[Any], description: str) -> Iterable[Any]:
    """Shows the progress over items on stderr, with the time left."""
    return track(items, description, console=Console(stderr=True))


def print_table(table: pd.DataFrame) -> None:
    """Numbers with four digits."""
    print(table.to_string(index=False, float_format='{:.4g}'.format))


if __name__ == '__main__':
    sys.exit(main())

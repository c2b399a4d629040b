"""Draws the loss along a line, and on a plane around checkpoints."""
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from rich.console import Console
from rich.table import Table
from torch import nn

from mmpsw import configs
from mmpsw.analysis import checkpoints, figures, loss_surface
from mmpsw.analysis.loss_surface import LinePoint, Width
from mmpsw.analysis.objective import (
    TrainingLoss,
    Validation,
    build_model,
    fixed_batches,
)
from mmpsw.checkpoints import allow_resume
from mmpsw.commands import checks, launch, options
from mmpsw.commands.progress import Bars
from mmpsw.results import out_folder, write_csv

_DESCRIPTION = '''\
The training loss around trained weights, on the same batches everywhere.

A checkpoint of a PSW run also holds other weights than those to deploy:
FILE.pth:live (control arm: what training goes on from), FILE.pth:mean (inside
a period: the running mean) and FILE.pth:previous (PSWM: the last mean).
'''


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``tools/analysis/loss_surface.py``; returns the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: args.command(args))


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = ArgumentParser(prog='loss_surface.py', description=_DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar='line|plane')
    line = commands.add_parser(
        'line', description='The loss along (1 - t) A + t B.',
        help='the loss along the line between two checkpoints')
    options.add_config(line)
    line.add_argument('a', metavar='A.pth', help='the weights at t = 0')
    line.add_argument('b', metavar='B.pth', help='the weights at t = 1')
    line.add_argument('--begin', type=float, default=-0.25,
                      help='the first t (default: -0.25)')
    line.add_argument('--end', type=float, default=1.25,
                      help='the last t (default: 1.25)')
    line.add_argument('--points', type=options.at_least(2), default=31,
                      help='how many values of t, besides 0 and 1 '
                      '(default: 31)')
    line.add_argument('--metric', nargs='?', const='auto', metavar='NAME',
                      help="also validate at each point; NAME is drawn, or "
                      "the config's primary metric")
    _add_common(line, run_line)
    plane = commands.add_parser(
        'plane', description='The loss over two filter-normalised random '
        'directions around each checkpoint (Li et al. 2018), and the width: '
        'the mean distance along random directions, both senses of each, at '
        'which the loss has risen by --rise above that of the checkpoint.',
        help='the loss on a plane around each checkpoint, and the width')
    options.add_config(plane)
    plane.add_argument('checkpoints', nargs='+', metavar='A.pth',
                       help='the weights; all are drawn on one scale')
    plane.add_argument('--extent', type=float, default=1.0,
                       help='the longest step, in filter norms (default: 1)')
    plane.add_argument('--points', type=options.at_least(3), default=15,
                       help='points along each side (default: 15)')
    plane.add_argument('--directions', type=options.at_least(2), default=5,
                       help='random directions for the width (default: 5)')
    plane.add_argument('--rise', type=float,
                       help='by how much the loss must have risen (default: '
                       "as much as the first checkpoint's loss)")
    _add_common(plane, run_plane)
    return parser.parse_args(argv)


def _add_common(parser: ArgumentParser,
                command: Callable[[Namespace], None]) -> None:
    parser.set_defaults(command=command)
    parser.add_argument('--batches', type=options.at_least(1), default=8,
                        help='training batches for each loss (default: 8)')
    parser.add_argument('--recalibrate', action='store_true',
                        help='recompute batch-norm statistics at each point, '
                        'on the same batches')
    parser.add_argument('--seed', type=int, default=0,
                        help='of the batches and directions (default: 0)')
    options.add_out(parser, 'work_dirs/CONFIG/loss_line or loss_plane')
    options.add_cfg_options(parser)


def run_line(args: Namespace) -> None:
    """Draws what ``line`` says.

    Raises:
        ValueError, FileNotFoundError: Before anything is computed.
    """
    if not args.begin < args.end:
        raise ValueError(f'--begin {args.begin} is not before --end '
                         f'{args.end}; give an interval, such as 0 and 1')
    cfg = _checked_config(args, [args.a, args.b])
    out = _out(args, 'loss_line', ('line.csv', 'line.png'))
    model = build_model(cfg)
    ends = [checkpoints.load_weights(name, cfg, model)
            for name in (args.a, args.b)]
    loss = _training_loss(cfg, model, args)
    validate = Validation(cfg, model) if args.metric else dict
    primary = None
    if args.metric:
        primary = _primary_metric(cfg, validate(), args.metric)
    with Bars() as progress:
        points = loss_surface.line(model, *ends,
                                   line_points(args.begin, args.end,
                                               args.points),
                                   loss, validate, progress.parts)
    names = _short_names([args.a, args.b])
    metrics = list(points[0].metrics)
    write_csv(out / 'line.csv', ['t', 'loss', *metrics],
               [[point.t, point.loss, *point.metrics.values()]
                for point in points])
    picture = figures.draw_line(points, names, out / 'line.png', primary,
                                _title(args, 'Loss along the line'))
    Console().print(_line_table(points, names, primary))
    _say_where(out / 'line.csv', picture)


def run_plane(args: Namespace) -> None:
    """Draws what ``plane`` says.

    Raises:
        ValueError, FileNotFoundError: Before anything is computed.
    """
    if not args.extent > 0:
        raise ValueError(f'--extent {args.extent} is no distance; give a '
                         'number > 0, such as 0.5')
    if args.rise is not None and not args.rise > 0:
        raise ValueError(f'--rise {args.rise} is no rise; give a number > 0')
    cfg = _checked_config(args, args.checkpoints)
    out = _out(args, 'loss_plane',
                      ('plane.csv', 'plane.png', 'widths.csv'))
    model = build_model(cfg)
    all_weights = [checkpoints.load_weights(name, cfg, model)
                   for name in args.checkpoints]
    loss = _training_loss(cfg, model, args)
    lengths = np.linspace(-args.extent, args.extent, args.points).tolist()
    planes: dict[str, list[list[float]]] = {}
    widths: dict[str, Width] = {}
    rise = args.rise
    with Bars(len(all_weights)) as progress:
        for name, weights in zip(_short_names(args.checkpoints), all_weights):
            loss_surface.set_weights(model, weights)
            directions = [
                loss_surface.random_direction(model, args.seed * 1000 + index)
                for index in range(args.directions)
            ]
            rise = loss() if rise is None else rise
            widths[name] = loss_surface.width(
                model, weights, directions, loss, rise, args.extent,
                args.extent / 10, progress.parts)
            planes[name] = loss_surface.plane(
                model, weights, directions[:2], lengths, loss, progress.parts)
    write_csv(out / 'plane.csv', ['checkpoint', 'x', 'y', 'loss'],
               [[name, x, y, value] for name, rows in planes.items()
                for y, row in zip(lengths, rows)
                for x, value in zip(lengths, row)])
    write_csv(out / 'widths.csv',
               ['checkpoint', 'loss', 'rise', 'width', 'std', 'rays',
                'open_rays', 'limit'],
               [[name, w.loss, w.rise, w.mean, w.std, len(w.radii), w.open,
                 w.limit] for name, w in widths.items()])
    picture = figures.draw_planes(planes, lengths, widths, out / 'plane.png',
                                  _title(args, 'Loss around each checkpoint'))
    Console().print(_width_table(widths))
    _say_where(out / 'plane.csv', out / 'widths.csv', picture)


def line_points(begin: float, end: float, count: int) -> list[float]:
    """Evenly spaced values of t; and 0 and 1, where they lie between."""
    ts = {round(t, 10) for t in np.linspace(begin, end, count).tolist()}
    return sorted(ts | {t for t in (0.0, 1.0) if begin <= t <= end})


def _checked_config(args: Namespace, names: Sequence[str]) -> Config:
    """The config of the command line, its data and the checkpoints found."""
    cfg = configs.load_config(args.config)
    options.merge_options(cfg, args)
    launch.set_dataloader_defaults(cfg, launch.has_accelerator())
    phases = ['train', *(['val'] if getattr(args, 'metric', None) else [])]
    for phase in phases:
        if cfg.get(f'{phase}_dataloader') is None:
            raise ValueError(f"config '{args.config}' has no "
                             f'{phase}_dataloader; give one that has')
    for name in names:
        checkpoints.check_weights(name)
    checks.check_data(cfg, *phases)
    allow_resume()
    return cfg


def _training_loss(cfg: Config, model: nn.Module,
                   args: Namespace) -> TrainingLoss:
    batches = fixed_batches(cfg, model, args.batches, args.seed)
    if not batches:
        raise ValueError('the training data set gives no batch, because it '
                         'holds less than one; set a smaller --cfg-options '
                         'train_dataloader.batch_size')
    return TrainingLoss(model, batches, args.recalibrate, args.seed)


def _primary_metric(cfg: Config, metrics: dict[str, float],
                    wanted: str) -> str:
    """The metric to draw: the one asked for, or as save_best would choose."""
    if wanted != 'auto':
        found = [m for m in metrics if wanted in (m, m.split('/')[-1])]
        if len(found) != 1:
            raise ValueError(f"--metric '{wanted}' is not a metric of the "
                             f'config; give one of {", ".join(metrics)}')
        return found[0]
    if not metrics:
        raise ValueError('the validation gives no metric, so --metric has '
                         'nothing to draw; leave it out')
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    # mmseg gives aAcc first, but ranks its models by mIoU.
    for name in (hook.get('save_best'), 'mIoU'):
        if name in metrics:
            return name
    return next(iter(metrics))


def _out(args: Namespace, kind: str, files: Sequence[str]) -> Path:
    """The folder for the results, with none of an earlier run in it."""
    stem = Path(configs.resolve_config(args.config)).stem
    return out_folder(args.out or Path('work_dirs', stem, kind), files,
                      args.overwrite)


def _short_names(paths: Sequence[str]) -> list[str]:
    """As much of the paths' ends as tells them apart."""
    parts = [Path(path).parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(part[-count:]) for part in parts]
        if len(set(names)) == len(set(paths)):
            break
    seen: dict[str, int] = {}
    for index, name in enumerate(names):  # the same one twice
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[index] = f'{name} ({seen[name]})'
    return names


def _title(args: Namespace, what: str) -> str:
    norms = 'recalibrated' if args.recalibrate else 'as saved'
    plural = 'batch' if args.batches == 1 else 'batches'
    return f'{what}  ({args.batches} {plural}, batch norm {norms})'


def _line_table(points: Sequence[LinePoint], names: Sequence[str],
                metric: str | None) -> Table:
    lowest = min(points, key=lambda p: (p.loss != p.loss, p.loss))
    rows = [(names[0], p) for p in points if p.t == 0]
    rows += [(names[1], p) for p in points if p.t == 1]
    table = Table('', 't', 'loss', *([metric] if metric else []))
    for name, p in [*rows, ('lowest loss', lowest)]:
        table.add_row(name, f'{p.t:.2f}', f'{p.loss:.4g}',
                      *([f'{p.metrics[metric]:.4g}'] if metric else []))
    if len(rows) == 2:
        table.caption = ('highest rise above the straight line between the '
                         f'ends: {loss_surface.barrier(points):.4g}')
    return table


def _width_table(widths: dict[str, Width]) -> Table:
    first = next(iter(widths.values()))
    table = Table('', 'loss', 'width', 'std', 'rays')
    table.caption = (f'width: mean distance, in filter norms, at which the '
                     f'loss is higher by {first.rise:.4g}')
    if any(width.open for width in widths.values()):
        table.caption += (f'; >: rays stayed lower up to {first.limit:g} '
                          '(take a smaller --rise, or a larger --extent)')
    for name, width in widths.items():
        sign = '> ' if width.open else ''
        table.add_row(name, f'{width.loss:.4g}', f'{sign}{width.mean:.3g}',
                      f'{width.std:.2g}', str(len(width.radii)))
    return table


def _say_where(*paths: Path) -> None:
    for path in paths:
        print(path)

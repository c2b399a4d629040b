"""Trains through a period, and draws the weights that are sampled in it.

    weight_distribution.py CONFIG epoch_3.pth --with pwalks

For each layer: the spread, which is the standard deviation of a weight over
the samples (in the mean over the layer, relative to the root mean square of
their mean), and the shift ||mean - w|| / ||w|| from the last weights w to
their mean. For some layers the distribution of the weights around their mean.
Only the pictures and their numbers are written. A finished
run continues behind its end, with its last learning rate.
"""
import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from mmpsw import configs
from mmpsw.commands import checks, launch, options, train
from mmpsw.commands.options import out_folder
from mmpsw.methods.averaging import PeriodicResampler, Schedule
from mmpsw.models import unwrapped

ORANGE, BLUE = '#D55E00', '#0072B2'  # which the colour-blind can tell apart
ENDLESS = 10**9  # epochs or iterations of a run that we stop ourselves
MOST_ROWS = 80  # of the picture: with more, biases and norms are left out


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: run(args))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = argparse.ArgumentParser(
        prog='weight_distribution.py', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_config(parser)
    parser.add_argument('checkpoint', nargs='?',
                        help="a run's epoch_3.pth or iter_50.pth (default: "
                        'from the start)')
    parser.add_argument('--with', dest='psw', metavar='NAME', help='pswa, '
                        'pwalks, pswm, or a file that defines psw (default: '
                        "the config's)")
    parser.add_argument('--periods', type=options.at_least(1), default=1,
                        help='how many periods (default: 1)')
    parser.add_argument('--histograms', type=options.at_least(0), default=4,
                        help='layers with a distribution (default: 4)')
    parser.add_argument('--seed', type=int, help='the random seed')
    options.add_out(parser, 'work_dirs/CONFIG/weight_distribution')
    options.add_cfg_options(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Records what the command line says.

    Raises:
        ValueError, FileNotFoundError: Before the run, where an option, the
            config, the checkpoint or the data is wrong; after it, when no
            period ended in it.
    """
    stem = Path(configs.resolve_config(args.config)).stem
    out = args.out or Path('work_dirs', stem, 'weight_distribution')
    out_folder(out, ['*iter_*.csv'], args.overwrite)
    cfg = build_config(args, out)
    runner = launch.build_runner(cfg)
    checks.check_fit(cfg, runner.model)
    recorder = Recorder(out, args.periods, args.histograms)
    runner.register_hook(recorder, priority='LOWEST')
    with recorder.bar, suppress(AllPeriods):
        runner.train()
    if not recorder.summary:
        raise ValueError(
            'no period with a sample ended in this run; set a shorter '
            '--cfg-options optim_wrapper.psw.period, or a longer run')
    if len(recorder.summary) < args.periods:
        print(f'The run ended after {len(recorder.summary)} of '
              f'{args.periods} periods.')
    print(pd.DataFrame(recorder.summary).to_string(
        index=False, float_format='{:.3g}'.format))
    print('medians over the layers, relative to their weights')
    print(*recorder.files, sep='\n')


def build_config(args: argparse.Namespace, out: Path) -> Config:
    """As tools/train.py does, but without validation, checkpoints and log."""
    argv = [args.config, '--work-dir', str(out), '--overwrite']
    for option, value in (('--with', args.psw), ('--seed', args.seed),
                          ('--resume', args.checkpoint)):
        if value is not None:
            argv += [option, str(value)]
    run_args = train.parse_args(argv)
    run_args.cfg_options = args.cfg_options
    cfg = train.build_config(run_args)
    if not any('psw' in wrapper for _, wrapper in configs.optim_wrappers(cfg)):
        raise ValueError(f"config '{args.config}' samples no weights, because "
                         'it has no psw; add --with pswa, pwalks or pswm')
    for phase in ('val', 'test'):
        for key in ('cfg', 'dataloader', 'evaluator'):
            cfg[f'{phase}_{key}'] = None
    cfg.default_hooks = dict(cfg.get('default_hooks') or {}, checkpoint=None,
                             logger=None)
    cfg.log_level = 'WARNING'
    train.verify(cfg, run_args)
    if args.checkpoint is not None:  # which holds the ends of the schedules
        for key in ('max_epochs', 'max_iters'):
            if cfg.train_cfg.get(key):
                cfg.train_cfg[key] = ENDLESS
    return cfg


class AllPeriods(Exception):  # noqa: N818  (it is no error)
    """All periods are recorded: the run is to stop."""


class Recorder(Hook):
    """Watches what is sampled, writes where a period ends, and stops the run.

    Attributes:
        summary (List[dict]): A row of the printed table for each period.
        files (List[Path]): What was written.
    """

    def __init__(self, out: Path, periods: int, histograms: int):
        self.out, self.periods, self.histograms = out, periods, histograms
        self.summary: list[dict[str, Any]] = []
        self.files: list[Path] = []
        self.bar = Progress(console=Console(stderr=True))

    def before_train(self, runner: Runner) -> None:
        """Begin to watch, after the run was resumed."""
        wrappers = runner.optim_wrapper
        if not isinstance(wrappers, OptimWrapperDict):
            wrappers = {'': wrappers}
        for name, wrapper in wrappers.items():
            if hasattr(wrapper, 'resampler'):
                self.stop = last_iteration(wrapper.resampler.schedule,
                                           runner.iter, self.periods)
                self.watch(wrapper.resampler, trained(runner, wrapper),
                           f'{name}_iter' if name else 'iter')
        self.task = self.bar.add_task('training',
                                      total=self.stop - runner.iter)

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Stop where the last period has ended."""
        self.bar.advance(self.task)
        if runner.iter + 1 >= self.stop:
            raise AllPeriods

    def watch(self, resampler: PeriodicResampler, params: Mapping[str, Tensor],
              stem: str) -> None:
        """Take each sample too, before the mean is written back over it."""
        step, spread = resampler.step, Spread(params, self.histograms)

        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal spread
            before = resampler.samples
            weights = [p.detach().to(torch.float64, copy=True)
                       for p in params.values()]
            ended = step(*args, **kwargs)
            after = resampler.samples if ended is None else ended.samples
            if after > before:
                spread.update(weights, resampler.iteration)
            if ended is not None and spread.samples:
                self.write(spread, type(resampler.technique).__name__,
                           f'{stem}_{resampler.iteration}')
                spread = Spread(params, self.histograms)
            return ended

        resampler.step = watched

    def write(self, spread: 'Spread', technique: str, stem: str) -> None:
        """Write a period's tables and pictures."""
        title = (f'{technique}: {spread.samples} samples, iterations '
                 f'{spread.first} to {spread.last}')
        layers, histograms = spread.layers(), spread.histograms()
        layers.to_csv(self.out / f'{stem}.csv', index=False)
        draw_layers(layers, title).savefig(self.out / f'{stem}.png')
        if len(histograms):
            histograms.to_csv(self.out / f'{stem}_histograms.csv', index=False)
            draw_histograms(histograms, title).savefig(
                self.out / f'{stem}_histograms.png')
        self.files += sorted(self.out.glob(f'{stem}[._]*'))
        self.summary.append({
            'period': title,
            'spread': layers.relative_std.median(),
            'shift': layers['shift'].median(),
            'widest layer': layers.layer[layers.relative_std.idxmax()],
            'its spread': layers.relative_std.max()})


def last_iteration(schedule: Schedule, iteration: int, periods: int) -> int:
    """The iteration at which periods end that are not over at another.

    Raises:
        ValueError: None ends any more.
    """
    past = max(0, iteration - schedule.begin) // schedule.period
    ends = (schedule.begin + (past + periods) * schedule.period, schedule.end,
            schedule.total)
    stop = min(end for end in ends if end is not None)
    if stop <= max(iteration, schedule.begin):
        raise ValueError(
            f'no period ends after iteration {iteration}, because psw.end, or '
            'the run, is before; set other --cfg-options '
            'optim_wrapper.psw.begin and .end, or give an earlier checkpoint')
    return stop


def trained(runner: Runner, wrapper: OptimWrapper) -> dict[str, Tensor]:
    """The parameters that an optimizer trains, in the model's order."""
    own = {id(param) for group in wrapper.optimizer.param_groups
           for param in group['params']}
    return {name: param for name, param in
            unwrapped(runner.model).named_parameters()
            if id(param) in own and param.requires_grad}


class Spread:
    """The spread of weights over samples, in fp64 (Welford, 1962).

    .. code-block:: text

        n     <- n + 1
        delta  = w - mu
        mu    <- mu + delta / n
        S     <- S + delta * (w - mu)
        std    = sqrt(S / n)

    Args:
        params (Dict[str, Tensor]): By their names.
        histograms (int): Of so many of them, evenly chosen among those that
            are no biases or norms, 512 elements are kept of each sample.
    """

    def __init__(self, params: Mapping[str, Tensor], histograms: int = 0):
        self.names = list(params)
        self.samples = self.first = self.last = 0
        self.mean = [torch.zeros_like(p, dtype=torch.float64)
                     for p in params.values()]
        self.squares = [torch.zeros_like(mean) for mean in self.mean]
        layers = [i for i, mean in enumerate(self.mean) if mean.ndim > 1]
        chosen = np.linspace(0, len(layers) - 1, histograms).astype(int)
        self.traces: dict[int, list[Tensor]] = {
            layers[i]: [] for i in chosen if layers}

    @torch.no_grad()
    def update(self, weights: Sequence[Tensor], iteration: int = 0) -> None:
        """Take one sample, of fp64 tensors that nobody changes."""
        self.samples += 1
        self.first, self.last = self.first or iteration, iteration
        for w, mean, squares in zip(weights, self.mean, self.squares):
            delta = w - mean
            mean += delta / self.samples
            squares += delta * (w - mean)
        self.weights = weights
        for index, trace in self.traces.items():
            flat = weights[index].flatten()
            some = torch.linspace(0, len(flat) - 1, min(512, len(flat)))
            trace.append(flat[some.long().to(flat.device)].cpu())

    def layers(self) -> pd.DataFrame:
        """A row for each parameter.

        ``rms`` of the mean and ``std`` over the samples are means over the
        elements; NaN where the weights are all zero.
        """
        rows = []
        for name, w, mean, squares in zip(self.names, self.weights, self.mean,
                                          self.squares):
            std = (squares / self.samples).sqrt().mean().item()
            rms = mean.square().mean().sqrt().item()
            size, moved = w.norm().item(), (mean - w).norm().item()
            rows.append(dict(
                layer=name, shape='x'.join(map(str, mean.shape)),
                samples=self.samples, rms=rms, std=std,
                relative_std=std / rms if rms else math.nan,
                shift=moved / size if size else math.nan))
        return pd.DataFrame(rows)

    def histograms(self) -> pd.DataFrame:
        """The density of ``(w - mu) / std`` of the elements that moved."""
        frames = []
        for index, trace in self.traces.items():
            values = torch.stack(trace).numpy()
            std = values.std(axis=0)
            values, std = values[:, std > 0], std[std > 0]
            if values.size:
                density, edges = np.histogram(
                    (values - values.mean(axis=0)) / std, 41, (-4, 4),
                    density=True)
                frames.append(pd.DataFrame({
                    'layer': self.names[index], 'from': edges[:-1],
                    'to': edges[1:], 'density': density}))
        return pd.concat(frames) if frames else pd.DataFrame()


def draw_layers(layers: pd.DataFrame, title: str) -> Figure:
    """Each layer's relative spread and shift, in the model's order."""
    if len(layers) > MOST_ROWS:
        layers = layers[layers['shape'].str.contains('x')]
        title += '  (without biases and norms)'
    figure = Figure(figsize=(9, 1.6 + 0.2 * len(layers)), dpi=150,
                    layout='constrained')
    axes = figure.add_subplot()
    for column, marker, color, label in (
            ('relative_std', 'o', ORANGE,
             'spread: std of a weight over the samples / rms of the mean'),
            ('shift', 'D', BLUE,
             'shift: ||mean - last weights|| / ||last weights||')):
        axes.plot(layers[column].where(layers[column] > 0), layers.layer,
                  marker, color=color, markersize=5, label=label)
    axes.set(xscale='log', ylim=(len(layers) - 0.4, -0.6),
             xlabel='relative to the weights of the layer')
    axes.tick_params(axis='y', labelsize=7)
    axes.grid(color='#E4E4E4')
    figure.suptitle(title)
    figure.legend(loc='outside lower center')
    return figure


def draw_histograms(histograms: pd.DataFrame, title: str) -> Figure:
    """The distribution of standardised weights, beside the normal one."""
    groups = list(histograms.groupby('layer', sort=False))
    figure = Figure(figsize=(3.2 * len(groups) + 0.4, 3.4), dpi=150,
                    layout='constrained')
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    xs = np.linspace(-4, 4, 200)
    for axes, (name, bins) in zip(panels, groups):
        axes.stairs(bins.density, [*bins['from'], 4], fill=True, color=BLUE,
                    alpha=0.5, label='samples')
        axes.plot(xs, np.exp(-xs**2 / 2) / math.sqrt(2 * math.pi), 'k--',
                  label='normal')
        axes.set_title(name, fontsize=8)
    panels[0].set_ylabel('density')
    panels[0].legend(fontsize=8)
    figure.supxlabel('(w - mean) / std, for each weight over the samples')
    figure.suptitle(title)
    return figure


if __name__ == '__main__':
    sys.exit(main())

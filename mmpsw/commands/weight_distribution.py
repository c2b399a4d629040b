"""Trains through a period, and draws the spread of the sampled weights."""
import math
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table

from mmpsw import configs
from mmpsw.analysis.weight_distribution import (
    PeriodSpread,
    WeightDistributionHook,
)
from mmpsw.checkpoints import allow_resume
from mmpsw.commands import checks, launch, options
from mmpsw.commands.average_checkpoints import load_checkpoint
from mmpsw.commands.progress import Bars
from mmpsw.methods.averaging import Schedule
from mmpsw.results import out_folder

# Epochs or iterations of a training that we end ourselves.
_ENDLESS = 10**9


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``tools/analysis/weight_distribution.py``; the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: run(args))


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = ArgumentParser(
        prog='weight_distribution.py',
        description='Train on from a checkpoint through a period, and draw '
        'the spread of the weights that PSW samples in it, layer by layer. '
        'No checkpoint is written. Behind the end of the training it goes on '
        'with the last learning rate.')
    options.add_config(parser)
    parser.add_argument(
        'checkpoint', nargs='?',
        help='a .pth file with the state of the training, such as '
        'epoch_3.pth (default: from the start)')
    parser.add_argument(
        '--psw', metavar='TECHNIQUE',
        help='pswa, pwalks, pswm, or the path of a file that defines psw '
        "(default: the config's)")
    parser.add_argument('--periods', type=options.at_least(1), default=1,
                        help='how many periods (default: 1)')
    parser.add_argument('--histograms', type=options.at_least(0), default=4,
                        help='layers with a histogram (default: 4)')
    parser.add_argument('--seed', type=int, help='the random seed')
    options.add_out(parser, 'work_dirs/CONFIG/weight_distribution')
    options.add_cfg_options(parser)
    return parser.parse_args(argv)


def run(args: Namespace) -> list[PeriodSpread]:
    """Records what the command line says.

    Raises:
        ValueError, FileNotFoundError: Before the training, where an option,
            the config, the checkpoint or the data is wrong; after it, when
            no period ended in it.
    """
    cfg = build_config(args)
    out = out_folder(cfg.work_dir, ['*iter_*.csv'], args.overwrite)
    checks.check_amp(cfg)
    checks.check_data(cfg, 'train')
    allow_resume()
    if args.checkpoint is not None:
        _go_on(cfg, args.checkpoint)
    runner = launch.build_runner(cfg)
    checks.check_fit(cfg, runner.model)
    recorder = WeightDistributionHook(str(out), args.histograms)
    runner.register_hook(recorder)
    runner.register_hook(_UntilPeriods(recorder, args.periods))
    try:
        runner.train()
    except _AllPeriods:
        pass
    _report(recorder.periods, args.periods, out)
    return recorder.periods


def build_config(args: Namespace) -> Config:
    """Builds the config that the command line describes.

    As for a training, but without validation, checkpoints and log lines.

    Raises:
        ValueError: The config or an option is wrong.
    """
    cfg = configs.load_config(args.config)
    if args.psw is not None:
        configs.set_psw(cfg, configs.psw_fragment(args.psw))
    options.merge_options(cfg, args)
    if not any('psw' in wrapper for _, wrapper in configs.optim_wrappers(cfg)):
        raise ValueError(f"config '{args.config}' samples no weights, because "
                         'it has no psw; add --psw pswa, pwalks or pswm')
    configs.set_psw(cfg)
    configs.add_psw_hook(cfg)
    launch.set_dataloader_defaults(cfg, launch.has_accelerator())
    for phase in ('val', 'test'):
        for key in ('cfg', 'dataloader', 'evaluator'):
            cfg[f'{phase}_{key}'] = None
    silent = dict(checkpoint=None, logger=None)
    cfg.default_hooks = {**(cfg.get('default_hooks') or {}), **silent}
    cfg.log_level = 'WARNING'
    cfg.launcher = 'none'
    if args.seed is not None:
        cfg.randomness = {**cfg.get('randomness', {}), 'seed': args.seed}
    stem = Path(configs.resolve_config(args.config)).stem
    cfg.work_dir = str(
        args.out or Path('work_dirs', stem, 'weight_distribution'))
    return cfg


def _go_on(cfg: Config, path: str) -> None:
    """Makes the run go on from a checkpoint, also behind the training's end.

    The learning rate's schedules have their ends in the checkpoint.

    Raises:
        ValueError, FileNotFoundError: One cannot train on from it.
    """
    checks.check_checkpoint(path)
    checkpoint = load_checkpoint(Path(path).expanduser())
    meta = checkpoint.get('meta') or {}
    if 'optimizer' not in checkpoint or 'iter' not in meta:
        raise ValueError(f"one cannot train on from '{path}', because it has "
                         "no optimizer state; give a run's epoch_*.pth or "
                         'iter_*.pth')
    cfg.load_from, cfg.resume = path, True
    for key in ('max_epochs', 'max_iters'):
        if cfg.train_cfg.get(key):
            cfg.train_cfg[key] = _ENDLESS


def period_ends(schedule: Schedule, iteration: int, count: int) -> list[int]:
    """The iterations at which the next periods end.

    Args:
        schedule (Schedule): Of the resampler.
        iteration (int): How many iterations were trained.
        count (int): How many to look for.

    Returns:
        List[int]: Fewer, where [begin, end) or the training is over before.
    """
    past = max(0, iteration - schedule.begin) // schedule.period
    limits = [e for e in (schedule.end, schedule.total) if e is not None]
    ends: list[int] = []
    for number in range(past + 1, past + 1 + count):
        end = min([schedule.begin + number * schedule.period, *limits])
        if end > max(schedule.begin, *ends[-1:], iteration):
            ends.append(end)
    return ends


class _AllPeriods(Exception):  # noqa: N818  (it is no error)
    """All periods are recorded: the training is to stop."""


class _UntilPeriods(Hook):
    """Shows the progress, and stops the training behind the last period."""

    priority = 'LOWEST'

    def __init__(self, recorder: WeightDistributionHook, periods: int):
        self.recorder = recorder
        self.periods = periods
        self.bar = Bars()

    def before_train(self, runner: Runner) -> None:
        """Look how far it is.

        Raises:
            ValueError: No period ends any more.
        """
        ends = [
            end for wrapper in _wrappers(runner) for end in period_ends(
                wrapper.resampler.schedule, runner.iter, self.periods)
        ]
        if not ends:
            raise ValueError(
                f'no period ends after iteration {runner.iter}, because '
                'psw.end, or the training, is before; set other --cfg-options '
                'optim_wrapper.psw.begin and .end, or give an earlier '
                'checkpoint')
        self.task = self.bar.add_task('training',
                                      total=max(ends) - runner.iter)
        self.bar.start()

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Stop where enough is recorded."""
        self.bar.advance(self.task)
        if len(self.recorder.periods) >= self.periods * len(_wrappers(runner)):
            self.after_train(runner)
            raise _AllPeriods

    def after_train(self, runner: Runner) -> None:
        """Stop the bar."""
        self.bar.stop()


def _wrappers(runner: Runner) -> list[Any]:
    wrapper = runner.optim_wrapper
    wrappers = [wrapper] if hasattr(wrapper, 'resampler') else list(
        wrapper.values())
    return [w for w in wrappers if hasattr(w, 'resampler')]


def _report(periods: Sequence[PeriodSpread], wanted: int, out: Path) -> None:
    if not periods:
        raise ValueError(
            'no period with a sample ended in this training; set a shorter '
            '--cfg-options optim_wrapper.psw.period, or a longer training')
    if len(periods) < wanted:
        print(f'The training ended after {len(periods)} of {wanted} periods.')
    Console().print(_table(periods))
    for period in periods:
        for path in sorted(out.glob(f'{period.name}[._]*')):
            print(path)


def _table(periods: Sequence[PeriodSpread]) -> Table:
    table = Table('period', 'samples', 'spread', 'widest layer', 'shift')
    table.caption = ('medians over the layers, relative to their weights; '
                     'spread: standard deviation over the samples; shift: '
                     'from the last weights to the mean')
    for period in periods:
        layers = [layer for layer in period.layers
                  if math.isfinite(layer.relative_std)]
        widest = max(layers, key=lambda layer: layer.relative_std)
        table.add_row(
            f'{period.technique} {period.first}-{period.last}',
            str(widest.samples),
            f'{statistics.median(x.relative_std for x in layers):.3g}',
            f'{widest.name} ({widest.relative_std:.3g})',
            f'{statistics.median(x.shift for x in layers):.3g}')
    return table

"""Trains a config of mmdet, mmseg or mmpretrain, with or without a method.

What imports torch comes late: ``--help``, and a wrong option, cost no time.
"""
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.config import Config

from mmpsw import configs
from mmpsw.commands import options

if TYPE_CHECKING:  # torch comes with it
    from mmpsw.engine import RideAlongHook


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``tools/train.py``; returns the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: train(args))


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = ArgumentParser(
        description='Train a stock or own config, as it is or with a method.')
    options.add_config(parser)
    parser.add_argument(
        '--with', nargs='+', action='extend', default=[], dest='methods',
        metavar='NAME', help='methods that are added to the config: '
        f'{", ".join(configs.known_methods())}, or the path of a file with '
        'settings such as theirs')
    parser.add_argument('--psw', nargs=1, action='extend', dest='methods',
                        metavar='NAME', help='the same, for one method')
    parser.add_argument(
        '--ride-along', nargs='+', action=options.ConfigOptions, default={},
        metavar='NAME=FOLDER', help='averages that are evaluated beside the '
        'run, which they do not change (control, ema, swa, lawa, ...): their '
        'validations and final weights go to the folder')
    parser.add_argument('--seed', type=int, help='the random seed')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='continue from a checkpoint; without one, from the newest '
        'readable one of the work dir, by iteration')
    for name, what in {
            'overwrite': 'allow overwriting the checkpoints of an earlier run',
            'amp': 'mixed precision',
            'auto-scale-lr': 'scale the learning rate to the actual batch size'
    }.items():
        parser.add_argument(f'--{name}', action='store_true', help=what)
    options.add_run_options(parser)
    return parser.parse_args(argv)


def train(args: Namespace) -> None:
    """Trains what the command line says.

    Raises:
        ValueError, FileNotFoundError: Before anything is downloaded or
            built, where an option, the config or the data is wrong.
        KeyboardInterrupt: Ctrl-C was pressed; it says when.
    """
    from mmpsw.commands import checks, data, launch
    from mmpsw.runtime.random_state import RandomStateHook
    from mmpsw.runtime.saving import save_safely
    cfg = build_config(args)
    notes = verify(cfg, args)
    passengers = ride_along(args)
    runner = launch.build_runner(cfg)
    checks.check_fit(cfg, runner.model)
    for note in notes:
        runner.logger.warning(note)
    # Not in the config, which stays what the user wrote.
    runner.register_hook(RandomStateHook(), priority='VERY_HIGH')
    save_safely(runner)
    if passengers is not None:
        runner.register_hook(passengers)
    try:
        with data.explained():
            runner.train()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f'interrupted at iteration {runner.iter}; '
                                '--resume goes on') from None
    launch.leave_processes()


def build_config(args: Namespace) -> Config:
    """Loads and transforms the config; a ValueError where one is wrong."""
    from mmpsw.commands import launch
    cfg = configs.load_config(args.config)
    fragments = [configs.load_fragment(name) for name in args.methods]
    configs.apply_fragments(cfg, fragments, args.amp, args.cfg_options)
    launch.set_up(cfg, args)
    if args.seed is not None:
        cfg.randomness = {**cfg.get('randomness', {}), 'seed': args.seed}
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ValueError(
                '--auto-scale-lr cannot be used, because the config has no '
                'auto_scale_lr.base_batch_size; set --cfg-options '
                'auto_scale_lr.base_batch_size=16 to the batch size that its '
                'learning rate is meant for')
        cfg.auto_scale_lr.enable = True
    return cfg


def ride_along(args: Namespace) -> 'RideAlongHook | None':
    """The hook for what ``--ride-along`` asks for; None for nothing.

    Raises:
        ValueError: An average changes the run, or its name is unknown.
    """
    if not args.ride_along:
        return None
    from mmpsw.engine import RideAlongHook
    return RideAlongHook(
        {name: configs.load_fragment(name).to_dict()
         for name in args.ride_along},
        {name: str(folder) for name, folder in args.ride_along.items()})


def verify(cfg: Config, args: Namespace) -> list[str]:
    """Runs all checks; returns what the log should say of resuming."""
    from mmpsw.commands import checks
    checks.check_work_dir(cfg, args.overwrite)
    folders = [Path(str(folder)) for folder in args.ride_along.values()]
    checks.check_ride_along(cfg, folders,
                            args.overwrite or cfg.get('resume'))
    notes = checks.find_start(cfg)
    checks.check_training(cfg, args.amp)
    checks.make_work_dir(cfg)
    return notes


if __name__ == '__main__':
    raise SystemExit(main())

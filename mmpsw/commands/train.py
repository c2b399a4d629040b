"""Trains a config of mmdet, mmseg or mmpretrain, with or without a method.

What imports torch comes late: ``--help``, and a wrong option, cost no time.
"""
from argparse import (
    ArgumentParser,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.config import Config

from mmpsw import configs
from mmpsw.commands import options
from mmpsw.compare.runs import is_by_epoch
from mmpsw.zoo import FROM_ZOO

if TYPE_CHECKING:  # torch comes with it
    from mmpsw.engine import RideAlongHook

_EXAMPLES = '''examples:
  mmpsw train mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --with psw
  mmpsw train my_config.py --with pswm:momentum=0.5 --amp --seed 0
  mmpsw train my_config.py --with psw --resume
'''


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``tools/train.py``; returns the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: train(args))


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = ArgumentParser(
        description='Train a stock or own config, as it is or with a method.',
        formatter_class=RawDescriptionHelpFormatter, epilog=_EXAMPLES)
    options.add_config(parser, '?')
    parser.add_argument(
        '--with', nargs='+', action=options.ListMethods, default=[],
        dest='methods', metavar='NAME', help='methods that are added to the '
        'config: psw (what we recommend), pswa, pwalks, pswm, ema, ...; list '
        'shows them all. With settings: pwalks:last=0.5. The path of a file '
        'with such settings works too')
    parser.add_argument(
        '--ride-along', nargs=2, action='append', default=[],
        metavar=('NAME', 'FOLDER'), help='an average that is evaluated beside '
        'the run, which it does not change (psw, ema, swa, lawa, ...): its '
        'validations and final weights go to the folder')
    parser.add_argument('--seed', type=options.seed, help='the random seed')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='continue from a checkpoint; without one, from the newest '
        'readable one of the work dir, by iteration')
    parser.add_argument('--overwrite', action='store_true', help='allow '
                        'overwriting the checkpoints of an earlier run')
    options.add_training(parser)
    options.add_run_options(parser)
    args = parser.parse_args(argv)
    options.take_config(parser, args, args.methods)
    args.validate_first |= args.from_zoo
    args.methods = [part for name in args.methods
                    for part in configs.split_arm(name)]
    return args


def train(args: Namespace) -> None:
    """Trains what the command line says.

    Raises:
        ValueError, FileNotFoundError: Before anything is built, where an
            option, the config or the data is wrong.
        KeyboardInterrupt: Ctrl-C was pressed; it says when.
    """
    from mmpsw.commands import checks, data, launch
    from mmpsw.runtime.random_state import RandomStateHook
    from mmpsw.runtime.saving import save_safely
    notes: list[str] = []
    cfg = build_config(args, notes)
    notes += verify(cfg, args)
    if not cfg.get('load_from') and any(
            name.partition(':')[0] == 'extend' for name in args.methods):
        notes.append("--with extend goes on from a finished schedule, but the "
                     'run has no load_from: it begins with random weights, at '
                     'a share of the rate')
    passengers = ride_along(args)
    runner = launch.build_runner(cfg)
    checks.check_fit(cfg, runner.model, whole=args.from_zoo)
    for note in notes:
        runner.logger.warning(note)
    # Not in the config, which stays what the user wrote.
    runner.register_hook(RandomStateHook(), priority='VERY_HIGH')
    runner.register_hook(data.DataHook(), priority='VERY_HIGH')
    save_safely(runner)
    if passengers is not None:
        runner.register_hook(passengers)
    if args.validate_first:
        runner.register_hook(launch.ValidateFirstHook())
    try:
        with data.explained():
            runner.train()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f'interrupted at iteration {runner.iter}; '
                                '--resume continues') from None
    launch.leave_processes()


def build_config(args: Namespace, notes: list[str] | None = None) -> Config:
    """Loads and transforms the config; a ValueError where one is wrong.

    ``notes`` takes sentences on what was left out, for the log.
    """
    from mmpsw.commands import checks, launch
    cfg = configs.load_config(args.config)
    fragments = [configs.load_fragment(name) for name in args.methods]
    left_out = configs.apply_fragments(cfg, fragments, args.amp,
                                       args.cfg_options)
    if notes is not None:
        notes += left_out
    launch.set_up(cfg, args)
    if args.seed is not None:
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': args.seed}
    if args.from_zoo:
        cfg.load_from = FROM_ZOO
    logger = (cfg.get('default_hooks') or {}).get('logger')
    if args.validate_first and logger and not is_by_epoch(cfg):
        logger.log_metric_by_epoch = False  # or its point 0 has no number
    if args.resume == 'auto':
        cfg.resume = checks.NEWEST
    elif args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume
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
    folders = {configs.method_name(name): folder
               for name, folder in args.ride_along}
    if len(folders) < len(args.ride_along):
        raise ValueError('--ride-along names an average twice, and keeps its '
                         'state by its name; leave one out, or rename a file')
    return RideAlongHook({
        configs.method_name(name): configs.load_fragment(name).to_dict()
        for name, _ in args.ride_along}, folders)


def verify(cfg: Config, args: Namespace) -> list[str]:
    """Runs all checks; returns what the log should say of resuming."""
    from mmpsw.commands import checks
    checks.check_work_dir(cfg, args.overwrite)
    checks.check_ride_along(cfg, [Path(folder) for _, folder
                                  in args.ride_along],
                            args.overwrite or bool(cfg.get('resume')))
    notes = checks.find_start(cfg)
    checks.check_training(cfg, args.amp)
    checks.check_weights(cfg, args.config, args.weights)
    checks.make_work_dir(cfg)
    return notes


if __name__ == '__main__':
    raise SystemExit(main())

"""Trains a config of mmdet, mmseg or mmpretrain, with or without PSW.

What imports torch comes late: ``--help``, and a wrong option, cost no time.
"""
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from mmpsw import configs
from mmpsw.commands import options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``tools/train.py``; returns the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: train(args))


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = ArgumentParser(
        prog='train.py',
        description='Train a stock or own config, with or without PSW.')
    options.add_config(parser)
    averaging = parser.add_mutually_exclusive_group()
    averaging.add_argument(
        '--psw',
        metavar='TECHNIQUE',
        help='pswa, pwalks, pswm, or the path of a file that defines psw')
    averaging.add_argument(
        '--with',  # interim: the commands' branch has its own
        dest='arm',
        help='an arm of a comparison: a name from configs/_base_/methods (ema, '
        'swa, lawa, lookahead, ...), or the path of a file with the settings '
        'that it adds to the config')
    parser.add_argument('--seed', type=int, help='the random seed')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help="continue from a checkpoint; without one, from the work dir's "
        'latest')
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='allow overwriting the checkpoints of an earlier run')
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the actual batch size')
    options.add_run_options(parser)
    return parser.parse_args(argv)


def train(args: Namespace) -> None:
    """Trains what the command line says.

    Raises:
        ValueError, FileNotFoundError: Before anything is downloaded or
            built, where an option, the config or the data is wrong.
    """
    from mmpsw.commands import checks, launch
    from mmpsw.engine import RandomStateHook, allow_resume, save_safely
    cfg = build_config(args)
    if any(configs.is_psw(wrapper) for _, wrapper in configs.optim_wrappers(cfg)):
        configs.check_strategy(cfg)
    checks.check_amp(cfg)
    checks.check_work_dir(cfg, args.overwrite)
    checks.find_resume_point(cfg)
    if cfg.get('load_from'):
        checks.check_checkpoint(cfg.load_from, bool(cfg.get('resume')))
    checks.check_pretrained(cfg.get('model'))
    checks.keep_seed(cfg)
    checks.check_data(cfg, 'train', 'val')
    allow_resume()
    runner = launch.build_runner(cfg)
    checks.check_fit(cfg, runner.model)
    # Not in the config, which stays what the user wrote.
    runner.register_hook(RandomStateHook(), priority='VERY_HIGH')
    save_safely(runner)
    runner.train()
    launch.leave_processes()


def build_config(args: Namespace) -> Config:
    """Builds the config that the command line describes.

    PSW and AMP come before ``--cfg-options``, so that these can change their
    keys, and PSW's hook after, so that ``custom_hooks.0`` is the stock
    config's own first hook.

    Raises:
        ValueError: The config or an option is wrong.
    """
    from mmpsw.commands import checks, launch
    cfg = configs.load_config(args.config)
    arm = _arm(args)
    configs.apply_arm(cfg, arm)
    if args.amp:
        _set_amp(cfg)
    options.merge_options(cfg, args)
    configs.add_arm_hooks(cfg, arm)
    launch.set_work_dir(cfg, args, _stem(args))
    launch.set_launcher(cfg, args)
    launch.set_dataloader_defaults(cfg, launch.has_accelerator())
    checks.fit_to_cpu(cfg)
    _set_seed(cfg, args.seed)
    _set_resume(cfg, args.resume)
    if args.auto_scale_lr:
        _set_auto_scale_lr(cfg)
    return cfg


def _stem(args: Namespace) -> str:
    stem = Path(configs.resolve_config(args.config)).stem
    arm = args.psw or args.arm
    return stem if arm is None else f'{stem}_{configs.psw_name(arm)}'


def _arm(args: Namespace) -> Config:
    if args.psw is not None:
        return Config(dict(psw=configs.psw_fragment(args.psw)))
    return Config() if args.arm is None else configs.arm_fragment(args.arm)


def _set_amp(cfg: Config) -> None:
    configs.set_wrapper_types(cfg, configs.AMP_WRAPPERS, '--amp')
    for _, wrapper in configs.optim_wrappers(cfg):
        wrapper.setdefault('loss_scale', 'dynamic')


def _set_seed(cfg: Config, seed: int | None) -> None:
    if seed is not None:
        cfg.randomness = {**cfg.get('randomness', {}), 'seed': seed}


def _set_resume(cfg: Config, resume: str | None) -> None:
    if resume is not None:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume


def _set_auto_scale_lr(cfg: Config) -> None:
    settings = cfg.get('auto_scale_lr') or {}
    if 'base_batch_size' not in settings:
        raise ValueError(
            '--auto-scale-lr cannot be used, because the config has no '
            'auto_scale_lr.base_batch_size; set --cfg-options '
            'auto_scale_lr.base_batch_size=16 to the batch size that its '
            'learning rate is meant for')
    cfg.auto_scale_lr.enable = True

"""Averages saved checkpoints into one file to deploy."""
import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn

from mmpsw import checkpoints, configs
from mmpsw.commands import checks, launch, options
from mmpsw.methods.averaging.batch_norm import recalibrate

StateDict = dict[str, Tensor]

# What a framework's inference reads besides the weights.
_KEPT_META = ('dataset_meta', 'cfg')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``tools/average_checkpoints.py``; returns the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: average(args))


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = ArgumentParser(
        prog='average_checkpoints.py',
        description='The mean of checkpoints, in one file to deploy.')
    parser.add_argument(
        'checkpoints',
        nargs='+',
        help='.pth files, or a work dir: all its epoch_*.pth or iter_*.pth')
    parser.add_argument(
        '--last', type=int, metavar='K', help='only the last K of them')
    parser.add_argument('--out', required=True, help='the file to write')
    parser.add_argument(
        '--overwrite', action='store_true', help='allow replacing --out')
    parser.add_argument(
        '--recalibrate',
        metavar='CONFIG',
        help="recompute batch norm's statistics on this config's train data: "
        'a path or a zoo name')
    parser.add_argument(
        '--batches',
        type=int,
        default=100,
        help='how many batches of it (default: 100)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=options.ConfigOptions,
        default={},
        metavar='KEY=VALUE',
        help='settings that replace those of --recalibrate')
    return parser.parse_args(argv)


def average(args: Namespace) -> None:
    """Writes the mean that the command line describes.

    Raises:
        ValueError, FileNotFoundError: Nothing has been written then.
    """
    out = Path(args.out)
    if out.exists() and not args.overwrite:
        raise ValueError(f"--out '{out}' exists; give another name, or "
                         '--overwrite')
    paths = find_checkpoints(args.checkpoints, args.last)
    cfg = _recalibration_config(args)
    state_dict, meta = mean_checkpoint(paths)
    if cfg is not None:
        _recalibrate(state_dict, cfg, args.batches)
    write_atomically(dict(meta=meta, state_dict=state_dict), out)
    print(f'{out}: the mean of {len(paths)} checkpoints, {paths[0].name} to '
          f'{paths[-1].name}')


def find_checkpoints(names: Sequence[str],
                     last: int | None = None) -> list[Path]:
    """Returns the checkpoints that files and work dirs name.

    Args:
        names: Paths of files and folders.
        last: How many to keep, those with the highest numbers. Default: all.

    Returns:
        List[Path]: Ordered by the epoch or iteration in their names; as given
        where they have none.

    Raises:
        ValueError, FileNotFoundError: There is none, or not ``last``.
    """
    paths = [path for name in names for path in _expand(Path(name))]
    kinds = {_numbered(path.name)[0] for path in paths}
    if len(kinds) == 1 and None not in kinds:
        paths.sort(key=lambda path: _numbered(path.name)[1])
    if last is None:
        return paths
    if not 1 <= last <= len(paths):
        raise ValueError(f'--last {last} is not possible with {len(paths)} '
                         f'checkpoints; give 1 to {len(paths)}')
    return paths[-last:]


def mean_checkpoint(paths: Sequence[Path]) -> tuple:
    """Returns the mean of checkpoints, and its ``meta``.

    Floating-point tensors are averaged in double precision and get their own
    precision back; others (counters) are the last checkpoint's.

    Args:
        paths: Files with equal keys and shapes in their ``state_dict``.

    Raises:
        ValueError: A file is no checkpoint, has other keys or shapes than
            the first one, or values that are not finite.
    """
    mean: dict[str, Tensor] = {}
    for count, path in enumerate(paths, start=1):
        checkpoint = load_checkpoint(path)
        state_dict = checkpoint['state_dict']
        if count == 1:
            mean = {key: _widened(value) for key, value in state_dict.items()}
        _check_alike(mean, state_dict, path)
        for key, value in state_dict.items():
            if _is_float(value):
                mean[key] += (value - mean[key]) / count
            else:
                mean[key] = value
    narrow = {key: mean[key].to(state_dict[key].dtype) for key in state_dict}
    last_meta = checkpoint.get('meta') or {}
    meta = {key: last_meta[key] for key in _KEPT_META if key in last_meta}
    meta.update(sources=[path.name for path in paths], count=len(paths))
    return narrow, meta


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint onto the CPU, without running code in it.

    Raises:
        ValueError: It is no mmengine checkpoint.
    """
    checkpoint = checkpoints.read(path)
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        raise ValueError(f"'{path}' has no state_dict; give a checkpoint that "
                         'mmengine saved')
    return checkpoint


def write_atomically(content: dict[str, Any], out: Path) -> None:
    """Saves a file that is there whole, or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f'.{out.name}.{os.getpid()}.tmp')
    try:
        torch.save(content, partial)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def _expand(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"checkpoint '{path}' does not exist; give "
                                '.pth files or a work dir')
    by_kind: dict[str, list[Path]] = {}
    for file in path.glob('*.pth'):
        kind, _ = _numbered(file.name)
        if kind is not None:
            by_kind.setdefault(kind, []).append(file)
    if len(by_kind) != 1:
        found = 'both' if by_kind else 'neither'
        raise ValueError(f"'{path}' holds {found} epoch_*.pth and iter_*.pth "
                         'checkpoints; name the files to average')
    return next(iter(by_kind.values()))


def _numbered(name: str) -> tuple:
    """('epoch', 3) for epoch_3.pth; (None, 0) for other names."""
    match = re.fullmatch(r'(epoch|iter)_(\d+)\.pth', name)
    return (match[1], int(match[2])) if match else (None, 0)


def _is_float(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _widened(value: Tensor) -> Tensor:
    if value.is_complex():
        return value.to(torch.complex128, copy=True)
    return value.to(torch.float64, copy=True) if _is_float(value) else value


def _check_alike(mean: StateDict, state_dict: StateDict, path: Path) -> None:
    for key in [*mean, *state_dict]:
        if (key in mean) != (key in state_dict):
            where = 'lacks' if key in mean else 'has'
            raise ValueError(f"'{path}' {where} '{key}', unlike the first "
                             'checkpoint; average checkpoints of one model')
        if mean[key].shape != state_dict[key].shape:
            raise ValueError(
                f"'{path}' has '{key}' in shape {tuple(state_dict[key].shape)}"
                f', the first checkpoint in {tuple(mean[key].shape)}; average '
                'checkpoints of one model')
        if not torch.isfinite(state_dict[key]).all():
            raise ValueError(f"'{path}' has values in '{key}' that are not "
                             'finite; leave this checkpoint out')


def _recalibration_config(args: Namespace) -> Config | None:
    """The config to recalibrate with, its data found; None if not asked."""
    if args.recalibrate is None:
        return None
    if args.batches < 1:
        raise ValueError(f'--batches {args.batches} is not possible; give 1 '
                         'or more')
    cfg = configs.load_config(args.recalibrate)
    options.merge_options(cfg, args)
    launch.set_dataloader_defaults(cfg, launch.has_accelerator())
    checks.check_data(cfg, 'train')
    return cfg


def _recalibrate(state_dict: StateDict, cfg: Config, batches: int) -> None:
    """Recomputes the batch-norm statistics in a state dict, in place."""
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    set_random_seed(0)
    model = _build_model(cfg, state_dict)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)

    def forward(batch: Any) -> None:
        model(**model.data_preprocessor(batch, True), mode='loss')

    if not recalibrate(model, forward, islice(loader, batches)):
        print('no batch norm to recalibrate in this model')
    for key, value in model.state_dict().items():
        state_dict[key] = value.cpu()


def _build_model(cfg: Config, state_dict: StateDict) -> nn.Module:
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        difference = str(error).splitlines()[-1].strip()
        raise ValueError('the checkpoints do not fit the model of '
                         f"--recalibrate '{cfg.filename}' ({difference}); "
                         'give the config that they were trained with'
                         ) from error
    return model.to(get_device()).train()


if __name__ == '__main__':
    raise SystemExit(main())

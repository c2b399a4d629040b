"""Averages saved checkpoints into one file to deploy."""
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mmpsw import configs
from mmpsw.commands import options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``tools/average_checkpoints.py``; returns the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: average(args))


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = ArgumentParser(
        description='The mean of checkpoints, in one file to deploy.')
    parser.add_argument(
        'checkpoints', nargs='+', type=Path,
        help='.pth files, or a work dir: all its epoch_*.pth or iter_*.pth')
    parser.add_argument('--last', type=options.at_least(1), metavar='K',
                        help='only the last K of them')
    parser.add_argument(
        '--search', metavar='CONFIG', help='only the last 1, 2, 4, ... of '
        'them, whichever has the best mean on the validation data of this '
        'config: a path or a zoo name. OUT.png shows them all')
    parser.add_argument('--out', type=Path, required=True,
                        help='the file to write')
    parser.add_argument('--overwrite', action='store_true',
                        help='allow replacing --out')
    parser.add_argument(
        '--weights', choices=('live', 'mean'), help='other weights that a '
        'run with psw saves: live, from which training continues; mean, '
        'of the period so far')
    parser.add_argument(
        '--recalibrate', metavar='CONFIG', help="recompute batch norm's "
        "statistics on this config's train data: a path or a zoo name")
    parser.add_argument('--batches', type=options.at_least(1), default=100,
                        help='how many batches of it (default: 100)')
    options.add_cfg_options(parser)
    return parser.parse_args(argv)


def average(args: Namespace) -> None:
    """Writes the mean that the command line describes.

    Raises:
        ValueError, FileNotFoundError: Nothing has been written then.
    """
    import torch

    from mmpsw import checkpoints
    if args.out.exists() and not args.overwrite:
        raise ValueError(f"--out '{args.out}' exists; give another name, or "
                         '--overwrite')
    if args.out.exists() and not args.out.is_file():
        raise ValueError(f"--out '{args.out}' is no file, and is not "
                         'replaced; give another name')
    paths = find_checkpoints(args.checkpoints, args.last)
    if args.recalibrate:  # its data are looked for before all work
        from mmpsw.commands import checks, launch
        cfg = configs.load_config(args.recalibrate)
        options.merge_options(cfg, args)
        launch.set_dataloader_defaults(cfg, launch.has_accelerator())
        checks.check_data(cfg, 'train')
    if args.search:
        from mmpsw.commands import window_search
        searched = configs.load_config(args.search)
        options.merge_options(searched, args)
        window_search.check(searched, args.out.with_suffix('.png'),
                            args.overwrite)
    part = _part(args) if args.weights else checkpoints.weights
    if args.search:
        paths = paths[-window_search.best_window(
            paths, searched, part, args.out.with_suffix('.png')):]
    averages = []

    def held(path: Path, content: Any) -> dict[str, Any]:
        if not args.weights and is_average(content):
            averages.append(path.name)
        return part(path, content)

    weights, meta = checkpoints.mean(paths, held)
    if args.recalibrate:
        _recalibrate(weights, cfg, args.batches)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with checkpoints.whole_file(args.out) as path, path.open('wb') as file:
        torch.save(dict(meta=meta, state_dict=weights), file)
    print(f'{args.out}: the mean of {len(paths)} checkpoints, '
          f'{paths[0].name} to {paths[-1].name}'
          + (f' (their {args.weights} weights)' if args.weights else '')
          + f', {args.out.stat().st_size / 1e6:.2f} MB')
    if averages and not args.search:
        print(f'{", ".join(averages)}: averages already, so that this is a '
              'mean of averages (--weights live takes the live weights of a '
              'run with psw)')


def is_average(content: Any) -> bool:
    """Whether a checkpoint's weights are those of PSW, an EMA, or of us."""
    kept = content if isinstance(content, dict) else {}
    return bool({'psw', 'ema_state_dict'} & {
        *kept, *(kept.get('optimizer') or {})} or 'count' in (
            kept.get('meta') or {}))


def find_checkpoints(names: Sequence[Path], last: int | None) -> list[Path]:
    """Returns the checkpoints that files and work dirs name.

    They are ordered by the epoch or iteration in their names; as given where
    they have none. The ``last`` of these are kept, all by default.

    Raises:
        ValueError, FileNotFoundError: There is none, or not ``last``.
    """
    paths = [path for name in names for path in _expand(name)]
    kinds = {_kind(path) for path in paths}
    if len(kinds) == 1 and kinds != {None}:
        paths.sort(key=lambda path: int(re.search(r'\d+', path.name)[0]))
    if last is not None and last > len(paths):
        raise ValueError(f'--last {last} is not possible with {len(paths)} '
                         f'checkpoints; give 1 to {len(paths)}')
    return paths[-(last or 0):]


def _expand(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"checkpoint '{path}' does not exist; give "
                                '.pth files or a work dir')
    files = [file for file in path.glob('*.pth') if _kind(file)]
    kinds = {_kind(file) for file in files}
    if len(kinds) != 1:
        raise ValueError(
            f"'{path}' holds {'both' if kinds else 'neither'} epoch_*.pth and "
            'iter_*.pth checkpoints; name the files to average')
    return files


def _kind(path: Path) -> str | None:
    """'epoch' for epoch_3.pth; None for other names."""
    match = re.fullmatch(r'(epoch|iter)_\d+\.pth', path.name)
    return match and match[1]


def _part(args: Namespace) -> Callable[[Path, Any], dict]:
    """Takes other weights than the ``state_dict`` out of checkpoints."""
    from mmpsw.engine.averaging.parts import weights_of
    return lambda path, content: weights_of(str(path), content, args.weights)


def _recalibrate(weights: dict, cfg: configs.Config, batches: int) -> None:
    """Recomputes the batch-norm statistics in a state dict, in place."""
    from mmengine.runner import Runner, set_random_seed

    from mmpsw.methods.averaging import recalibrate
    from mmpsw.models import build_model, losses
    set_random_seed(0)
    model = build_model(cfg)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        difference = str(error).splitlines()[-1].strip()
        raise ValueError(
            'the checkpoints do not fit the model of --recalibrate '
            f"'{cfg.filename}' ({difference}); give the config that they were "
            'trained with') from error
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    forward = partial(losses, model.train())
    if not recalibrate(model, forward, islice(loader, batches)):
        print('no batch norm to recalibrate in this model')
    weights.update((key, value.cpu())
                   for key, value in model.state_dict().items())


if __name__ == '__main__':
    raise SystemExit(main())

"""What the commands share: options and error lines.

Nothing here imports torch: ``--help``, and a wrong option, cost no time.
"""
import math
import pickle
import sys
import traceback
from argparse import (
    Action,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
)
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.error import URLError

from mmengine.config import Config, DictAction

from mmpsw import configs

# What each launcher sets for its processes, and how to start it.
LAUNCHERS = {
    'pytorch': ('RANK', 'bash tools/dist_train.sh CONFIG PROCESSES, or to '
                'test with torchrun --nproc-per-node PROCESSES tools/test.py'),
    'slurm': ('SLURM_PROCID', 'bash tools/slurm_train.sh'),
    'mpi': ('OMPI_COMM_WORLD_LOCAL_RANK', 'mpirun'),
}
_PACKAGE = Path(__file__).resolve().parents[1]
# Scripts in tools/ are ours too.
_OURS = tuple(f'{path}/' for path in (_PACKAGE, _PACKAGE.parent / 'tools'))


class ConfigOptions(DictAction):
    """``key=value`` pairs; anything else is an error of one line."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            if '=' not in value:
                parser.error(f"{option_string} takes key=value, but got "
                             f"'{value}'; write for example "
                             'train_cfg.max_epochs=3')
        super().__call__(parser, namespace, values, option_string)


def add_run_options(parser: ArgumentParser) -> None:
    """Adds the options that training and testing share."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    add_cfg_options(parser)
    parser.add_argument('--launcher', choices=['none', *LAUNCHERS],
                        default='none', help='how the processes were started')
    # torchrun's predecessor passes it, in one spelling or the other.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_config(parser: ArgumentParser, nargs: str | None = None) -> None:
    """Adds the config's argument; '?' where :func:`take_config` follows."""
    parser.add_argument('config', nargs=nargs, help='a path, or a zoo name: '
                        'mmdet::..., mmseg::..., mmpretrain::...')


def take_config(parser: ArgumentParser, args: Namespace,
                names: list[str]) -> None:
    """Takes the config from the end of names: ``--with psw CONFIG``."""
    if args.config is None:
        known = configs.known_methods()
        if not names or names[-1].partition(':')[0].lower() in known:
            parser.error('a CONFIG is required: a path, or a zoo name')
        args.config = names.pop()


class ListMethods(Action):
    """``--with NAME ...``: collects names; ``list`` shows them all."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values == ['list']:
            print(configs.describe_methods())
            parser.exit()
        setattr(namespace, self.dest,
                [*(getattr(namespace, self.dest) or []), *values])


def seed(text: str) -> int:
    """The type of an option that takes a seed."""
    value = at_least(0)(text)
    if value >= 2**32:
        raise ArgumentTypeError(f'{text} is no seed: NumPy takes less than '
                                '2 ** 32')
    return value


def add_training(parser: ArgumentParser) -> None:
    """Adds what train.py and compare.py share."""
    for name, what in {
            'amp': 'mixed precision',
            'auto-scale-lr': 'scale the learning rate to the actual batch',
            'from-zoo': 'begin with the weights that the zoo publishes for '
            'the config, and validate them first',
            'validate-first': 'validate before the first step, too',
    }.items():
        parser.add_argument(f'--{name}', action='store_true', help=what)
    add_weights(parser)


def add_weights(parser: ArgumentParser) -> None:
    """Adds the place of weights that a model zoo publishes."""
    parser.add_argument(
        '--weights', type=Path, metavar='FOLDER', help='where published '
        'weights are looked for by their file names, before torch\'s cache '
        'and the download (default: what MMPSW_WEIGHTS in the environment '
        'names)')


def add_cfg_options(parser: ArgumentParser) -> None:
    """Adds ``--cfg-options``, which :func:`merge_options` merges."""
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, default={},
        metavar='KEY=VALUE',
        help='settings that replace those of the config: a.b=1 c="[1,2]"')


def add_out(parser: ArgumentParser, default: str) -> None:
    """Adds the options of a folder for results, ``default`` for the help."""
    parser.add_argument('--out', '--work-dir', type=Path, metavar='FOLDER',
                        help=f'where the results go (default: {default})')
    parser.add_argument('--overwrite', action='store_true',
                        help='allow replacing the results in --out')


def out_folder(path: str | Path, results: Sequence[str],
               overwrite: bool = False) -> Path:
    """Makes a folder for results, given as patterns of their files' names.

    Raises:
        ValueError: It is a file, or holds such files of an earlier run.
    """
    out = Path(path)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out '{out}' is a file; give a folder")
    old = sorted(file for name in results for file in out.glob(name))
    if old and not overwrite:
        raise ValueError(f"'{out}' holds the results of an earlier run "
                         f'({old[0].name}); give another --out, or '
                         '--overwrite')
    out.mkdir(parents=True, exist_ok=True)
    return out


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that takes an integer, such as 100 or 1e6."""

    def number(text: str) -> int:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not value >= least or not value.is_integer():
            raise ArgumentTypeError(f'{text} is not an integer >= {least}')
        return int(value)

    return number


def merge_options(cfg: Config, args: Namespace) -> None:
    """Merges ``--cfg-options``; a ValueError where a key leads nowhere."""
    configs.merge(cfg, args.cfg_options, '--cfg-options')


def report_errors(command: Callable[[], None]) -> int:
    """Runs a command; ends with a line on stderr where a user went wrong.

    Returns:
        int: The exit status: 0; 2 after an error that was reported; 130 after
        Ctrl-C. Other exceptions go on, with their traceback.
    """
    try:
        from mmpsw import checkpoints  # torch comes with it
        with checkpoints.data_only():
            command()
    except KeyboardInterrupt as interruption:
        print(str(interruption) or 'interrupted', file=sys.stderr)
        return 130
    except Exception as error:
        if not _is_user_error(error):
            raise
        print(f'error: {_one_line(error)}', file=sys.stderr)
        return 2
    return 0


def _is_user_error(error: BaseException) -> bool:
    """Whether an exception needs no traceback to be understood.

    A file that is missing or forbidden, a download that failed, a file that
    torch does not load as data, and a ValueError, OSError or ImportError that
    a ``raise`` of ours made. All others may be a bug, whose traceback stays.
    """
    if isinstance(error, (FileNotFoundError, PermissionError, URLError,
                          pickle.UnpicklingError)):
        return True
    kinds = (ValueError, OSError, ImportError)
    cause = error if isinstance(error, kinds) else None
    while cause is not None and not raised_on_purpose(cause, _OURS):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def raised_on_purpose(error: BaseException,
                      files: tuple[str, ...] = ('', )) -> bool:
    """Whether a ``raise`` in one of these files made an exception."""
    *_, last = [None, *traceback.extract_tb(error.__traceback__)]
    return (last is not None and last.filename.startswith(files)
            and last.line.startswith('raise '))


def _one_line(error: BaseException) -> str:
    """The message of an error; a worker's own error where it is wrapped."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith('Caught '):  # in a worker: its traceback follows
        return lines[-1]
    if isinstance(error, pickle.UnpicklingError):
        from mmpsw import checkpoints
        return ('a checkpoint that the config names is not loaded, because it '
                'is none or asks for code to be run, and checkpoints are '
                f'read as data only ({checkpoints.reason(error)}); give '
                'another one')
    if isinstance(error, URLError):
        return (f'a download failed ({lines[0]}); put the file where torch '
                'caches it, or train from scratch with --cfg-options '
                'model.backbone.init_cfg=None')
    return ' '.join(lines)

"""Says in numbers, curves and a page how finished runs compare."""
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from mmpsw.compare.arms import (
    find_baseline,
    is_grid,
    read_arms,
    read_grid_file,
    split_name,
)
from mmpsw.compare.runs import Arm

_DEFAULT_OUT = Path('work_dirs/report')


def add_options(parser: ArgumentParser) -> None:
    """Adds the options of ``compare.py report``."""
    parser.add_argument(
        'work_dirs',
        nargs='+',
        metavar='WORK_DIR',
        help="a folder that compare.py run has made, or any training's work "
        'dir, which NAME=WORK_DIR gives a name; several with one NAME are '
        'the seeds of one arm')
    parser.add_argument(
        '--baseline',
        metavar='NAME',
        help="the arm that the others are compared with (default: 'baseline', "
        'else the first)')
    parser.add_argument(
        '--metric',
        help='the validation metric to compare by (default: what save_best '
        'names, else mIoU or bbox_mAP, else the first that is logged)')
    parser.add_argument(
        '--rule',
        choices=['greater', 'less'],
        help='which values of it are better, where its name does not say')
    parser.add_argument(
        '--out',
        type=Path,
        metavar='DIR',
        help='folder of the report (default: WORK_DIR/report for one grid, '
        f'else {_DEFAULT_OUT})')
    parser.add_argument(
        '--config',
        help='the path or zoo name of the config that was trained, for what '
        'the model zoo publishes (a grid knows it)')
    parser.add_argument('--title', help="the report's title")


def report(args: Namespace) -> None:
    """Prints the table and the notes, and writes the report.

    Raises:
        ValueError: A folder holds no run, an option does not fit the runs,
            or the report's folder holds something else.
    """
    # What imports torch or draws comes late: a wrong option costs no time.
    from mmpsw.compare import table
    from mmpsw.compare.notes import notes
    from mmpsw.compare.report import check_out_dir, write_report
    out = args.out or _default_out(args.work_dirs)
    check_out_dir(out)
    arms = read_arms(args.work_dirs, args.metric, args.rule)
    baseline = find_baseline(arms, args.baseline)
    remarks = notes(arms, baseline)
    if args.baseline is None and baseline != 'baseline':
        remarks.insert(0, f'Compared with {baseline}, the first arm '
                       '(--baseline names another).')
    zoo, zoo_remark = _published(args, arms, baseline)
    remarks += [zoo_remark] if zoo_remark else []
    page = write_report(arms, baseline, out, title=_title(args, arms),
                        remarks=remarks, zoo=zoo, commands=_commands(args))
    shown = [arm for arm in arms if arm.runs]
    print(table.as_text(shown, baseline, zoo.value if zoo else None))
    _print_list('', table.explain(shown, baseline))
    if zoo:
        _print_list('model zoo:', [
            f'{zoo.source} publishes {zoo.metric} for {zoo.name}, on the same '
            'validation data', *zoo.caveats, zoo.config_url,
            *([zoo.weights_url] if zoo.weights_url else [])
        ])
    _print_list('notes:', remarks)
    print(f'\npage:   {page}')
    for name in ('table.md', 'table.csv', 'points.csv', 'curves.png',
                 'curves.svg'):
        print(f'        {page.with_name(name)}')


def _default_out(work_dirs: Sequence[str]) -> Path:
    name, folder = split_name(work_dirs[0])
    if len(work_dirs) == 1 and name is None and folder.is_dir() and is_grid(
            folder):
        return folder / 'report'
    return _DEFAULT_OUT


def _grids(args: Namespace) -> dict[Path, dict]:
    """What compare.py run was asked for, by the folder that it made."""
    grids = {}
    for path in args.work_dirs:
        name, folder = split_name(path)
        grid = read_grid_file(folder) if name is None else None
        if grid is not None:
            grids[folder] = grid
    return grids


def _config(args: Namespace) -> str | None:
    """The config that all arms were trained with, if that is known."""
    if args.config:
        return args.config
    grids = _grids(args)
    names = {grid.get('config') for grid in grids.values()}
    return names.pop() if len(grids) == len(args.work_dirs) and len(
        names) == 1 else None


def _published(args: Namespace, arms: Sequence[Arm], baseline: str) -> tuple:
    """The zoo's number, or else a sentence on why there is none."""
    from mmpsw.compare.zoo_results import NotPublishedError, find_published
    config = _config(args)
    if config is None:
        return None, ("The model zoo's result is left out: it is not known "
                      'from which config these runs were started (--config '
                      'says it).')
    run = next(arm for arm in arms if arm.name == baseline).runs[0]
    try:
        return find_published(config, run), None
    except NotPublishedError as error:
        return None, f"The model zoo's result is left out: {error}."
    except ValueError as error:
        if args.config:
            raise
        # A grid may be read far from where it was made.
        return None, f"The model zoo's result is left out: {error}."


def _title(args: Namespace, arms: Sequence[Arm]) -> str:
    if args.title:
        return args.title
    config = _config(args)
    if config:
        return Path(config.rpartition('::')[2]).stem
    names = [arm.name for arm in arms if arm.runs]
    if len(args.work_dirs) == 1:
        return split_name(args.work_dirs[0])[1].resolve().name
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def _commands(args: Namespace) -> list[str]:
    """The commands that make the runs and the report again."""
    commands = []
    for folder, grid in _grids(args).items():
        words = ['python', 'tools/compare.py', 'run', grid['config'],
                 '--arms', *grid['arms'],
                 '--seeds', *map(str, grid['seeds']),
                 '--work-dir', str(folder)]
        pairs = [f'{key}={value}' for key, value
                 in (grid.get('cfg_options') or {}).items()]
        commands.append(shlex.join(
            words + (['--cfg-options', *pairs] if pairs else [])))
    words = ['python', 'tools/compare.py', 'report', *args.work_dirs]
    for option in ('baseline', 'metric', 'rule', 'config', 'title', 'out'):
        value = getattr(args, option)
        words += [f'--{option}', str(value)] if value is not None else []
    return [*commands, shlex.join(words)]


def _print_list(title: str, lines: Sequence[str]) -> None:
    if lines:
        print(f'\n{title}' if title else '')
    for line in lines:
        print(f'- {line}')

"""Compares arms: trains them over several seeds, and reports on them."""
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from mmpsw import configs
from mmpsw.commands import options
from mmpsw.compare import grid as grids

_DEFAULT_ARMS = ('baseline', 'control', 'pswa', 'pwalks', 'pswm')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``tools/compare.py``; returns the exit status."""
    args = parse_args(argv)
    return report_outcome(lambda: args.command(args))


def report_outcome(command: Callable[[], None]) -> int:
    """Runs a command; a line, or the ends of logs, where it went wrong.

    Returns:
        int: The exit status: 0, 1 after trainings that failed, 2 after a
        user's error, 130 after Ctrl-C.
    """
    try:
        return options.report_errors(command)
    except grids.TrainingError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nInterrupted. The same command goes on where this one '
              'stopped.', file=sys.stderr)
        return 130


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = ArgumentParser(
        prog='compare.py',
        description='Compare ways to train: the baseline, PSW and its peers.')
    commands = parser.add_subparsers(
        required=True, metavar='run|report|summary')
    run_parser = commands.add_parser(
        'run', help='train every arm with every seed, and report on them')
    add_run_options(run_parser)
    run_parser.set_defaults(command=run)
    report_parser = commands.add_parser(
        'report', help='report on work directories, of compare.py or others')
    # Late: a wrong option of `run` should not wait for it.
    from mmpsw.commands import report
    report.add_options(report_parser)
    report_parser.set_defaults(command=report.report)
    summary_parser = commands.add_parser(
        'summary', help='put the tables of several reports into one')
    add_summary_options(summary_parser)
    summary_parser.set_defaults(command=summarize)
    return parser.parse_args(argv)


def add_summary_options(parser: ArgumentParser) -> None:
    """Adds the options of ``compare.py summary``."""
    parser.add_argument(
        'tables',
        nargs='+',
        metavar='TABLE',
        help="reports' folders, or the table.csv in them")
    parser.add_argument(
        '--keys',
        nargs='+',
        default=('final', ),
        metavar='KEY',
        help='what is compared: final, best, area, drop (default: final)')
    parser.add_argument(
        '--plot', type=Path, metavar='PNG', help='also draw a picture')


def summarize(args: Namespace) -> None:
    """Prints Markdown: how often an arm wins, and a table for each key.

    And draws them.

    Raises:
        ValueError: A table is missing, or a key is unknown.
    """
    from mmpsw.compare import summary
    comparisons = summary.read(args.tables)
    if len(comparisons) > 1:
        print('Better / undecided / worse than the baseline:\n\n'
              f'{summary.tally(comparisons, args.keys)}')
    for key in args.keys:
        text = summary.as_markdown(comparisons, key)
        print(f'{summary.KEYS[key].capitalize()}:\n\n{text}')
    if args.plot:
        print('picture:', summary.plot(comparisons, args.plot, args.keys))


def add_run_options(parser: ArgumentParser) -> None:
    """Adds the options of ``compare.py run``."""
    options.add_config(parser)
    parser.add_argument(
        '--arms',
        nargs='+',
        default=_DEFAULT_ARMS,
        metavar='ARM',
        help=f'{", ".join(configs.known_arms())}, or the path of a file with the '
        'settings that an arm adds to the config (default: '
        f'{" ".join(_DEFAULT_ARMS)})')
    parser.add_argument(
        '--seeds',
        nargs='+',
        type=int,
        default=(0, ),
        metavar='SEED',
        help='each arm is trained once with each (default: 0)')
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='folder of the results (default: work_dirs/compare_CONFIG). '
        'Finished runs in it are used, an interrupted one is gone on with, '
        'and arms and seeds may be added; where it holds something else, a '
        'numbered folder beside it is taken')
    parser.add_argument(
        '--jobs',
        type=int,
        help='runs at once (default: one for each GPU; one on a CPU)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=(),
        metavar='KEY=VALUE',
        help='settings that replace those of the config, for all the runs')


def run(args: Namespace) -> None:
    """Trains what the command line says, and reports on it.

    Raises:
        ValueError, FileNotFoundError: Before anything is trained, where an
            option, the config or the data is wrong.
        TrainingError: Some trainings ended with errors; the report is of the
            others.
    """
    report_on(train_grid(make_grid(args), args.jobs))


def train_grid(grid: grids.Grid,
               jobs: int | None = None,
               fresh: bool = False) -> grids.Grid:
    """Trains a grid, with its progress on the terminal.

    Args:
        grid: What is to be trained.
        jobs: Runs at once. By default one for each GPU.
        fresh: Whether to train anew what has been trained before.

    Returns:
        Grid: With the folder that it was given.

    Raises:
        ValueError, FileNotFoundError: Before anything is trained.
        TrainingError: Some trainings failed; the report is of the others.
    """
    gpus = visible_gpus()
    jobs = jobs or max(1, len(gpus))
    check(grid)
    grid = grids.claim(grid, fresh)
    unit = 'epochs' if grids.is_by_epoch(grid.load()) else 'iterations'
    print(f'{len(grid.cells)} trainings, {jobs} at a time: the arms '
          f'{", ".join(grid.arms)}, with the seeds '
          f'{", ".join(map(str, grid.seeds))}, for {grid.max_steps()} {unit} '
          'each; a seed has the same data order in all arms')
    print(f'Everything is written to {grid.work_dir}/', flush=True)
    with grids.Reporter(grid) as bar:
        failures = grids.train(grid, bar, jobs, gpus)
    if failures:
        if len(failures) < len(grid.cells):
            report_on(grid)
        raise grids.TrainingError(grids.explain(failures))
    return grid


def make_grid(args: Namespace) -> grids.Grid:
    """Turns the command line into the runs that it asks for.

    Raises:
        ValueError: An option is wrong.
    """
    arms = {configs.psw_name(arm): arm for arm in args.arms}
    if len(arms) < len(args.arms):
        raise ValueError(
            f"--arms {' '.join(args.arms)} names an arm twice; a file's name "
            'is its name: rename one, or leave it out')
    for arm in args.arms:
        configs.arm_fragment(arm)
    if len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f'--seeds {" ".join(map(str, args.seeds))} names a '
                         'seed twice; leave one out')
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f'--jobs {args.jobs} is not possible; give 1 or more')
    for pair in args.cfg_options:
        if '=' not in pair:
            raise ValueError(f"--cfg-options takes key=value, but got '{pair}"
                             "'; write for example train_cfg.max_epochs=3")
    stem = Path(configs.resolve_config(args.config)).stem
    return grids.Grid(
        config=args.config,
        arms=arms,
        seeds=tuple(args.seeds),
        work_dir=args.work_dir or Path('work_dirs') / f'compare_{stem}',
        options=tuple(args.cfg_options))


def check(grid: grids.Grid) -> None:
    """Looks at each arm's config before hours are spent.

    Raises:
        ValueError, FileNotFoundError: Something is wrong or missing.
    """
    from mmpsw.commands import checks, train
    for cell in (grids.Cell(arm, grid.seeds[0]) for arm in grid.arms):
        cfg = train.build_config(train.parse_args(grid.command(cell)[2:]))
        checks.check_amp(cfg)
        checks.check_data(cfg, 'train', 'val')
    if grid.load().get('val_evaluator') is None:
        raise ValueError(
            f"config '{grid.config}' has no val_evaluator, so that there is "
            'nothing to compare; give one that validates')


def visible_gpus() -> list[str]:
    """The GPUs, as CUDA_VISIBLE_DEVICES names them."""
    import torch
    named = [name for name in os.environ.get('CUDA_VISIBLE_DEVICES',
                                             '').split(',') if name]
    return (named or list(map(str, range(torch.cuda.device_count())))
            )[:torch.cuda.device_count()]


def report_on(grid: grids.Grid) -> None:
    """Reports as ``compare.py report`` does."""
    from mmpsw.commands import report
    parser = ArgumentParser()
    report.add_options(parser)
    report.report(parser.parse_args([str(grid.work_dir)]))


if __name__ == '__main__':
    raise SystemExit(main())

"""Compares arms: trains them over several seeds, and reports on them."""
import os
import shlex
import signal
import sys
from argparse import (
    ArgumentParser,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mmpsw import configs
from mmpsw.commands import options
from mmpsw.compare import grid as grids

if TYPE_CHECKING:  # what imports pandas or draws comes late
    from mmpsw.compare.comparison import Comparison
    from mmpsw.compare.zoo_results import Published

_DEFAULT_ARMS = ('baseline', 'psw', 'ema', 'pswa')
_DEFAULT_OUT = Path('work_dirs/report')
_EXAMPLES = '''examples:
  mmpsw compare run my_config.py --seeds 0 1 2
  mmpsw compare run my_config.py --arms baseline psw pwalks:last=0.5 --dry-run
  mmpsw compare report ema=work_dirs/a psw=work_dirs/b
'''


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``tools/compare.py``; returns the exit status."""
    args = parse_args(argv)
    return report_outcome(lambda: args.command(args))


def report_outcome(command: Callable[[], None]) -> int:
    """Runs a command; a line, or the ends of logs, where it went wrong.

    Returns the exit status: 0, 1 after runs that failed, 2 after a user's
    error, 130 after Ctrl-C or SIGTERM.
    """
    from mmpsw.compare.training import TrainingError

    # A `kill` ends the runs with it, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return options.report_errors(command)
    except TrainingError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = ArgumentParser(
        description='Compare ways to train: the baseline, psw and others.',
        formatter_class=RawDescriptionHelpFormatter, epilog=_EXAMPLES)
    commands = parser.add_subparsers(required=True,
                                     metavar='run|report|summary|sweep')
    for command, add_options, text in (
        (run, _run_options, 'train each arm with each seed, and report'),
        (report, _report_options, 'report on work dirs, ours or others'),
        (summary, _summary_options, 'put several reports into one table'),
        (sweep, _sweep_options, 'the metric against one setting'),
    ):
        subparser = commands.add_parser(command.__name__, help=text)
        add_options(subparser)
        subparser.set_defaults(command=command)
    args = parser.parse_args(argv)
    if args.command is run:
        options.take_config(parser, args, args.arms or [])
    return args


def _run_options(parser: ArgumentParser) -> None:
    options.add_config(parser, '?')
    add = parser.add_argument
    add('--arms', nargs='+', action=options.ListMethods, metavar='ARM',
        help='what train --with takes: psw, pswa, pwalks:last=0.5, ... (list '
        'shows all), a path, or several joined by + '
        f'(default: {" ".join(_DEFAULT_ARMS)})')
    add('--seeds', nargs='+', type=options.seed, default=(0, ),
        metavar='SEED', help='each arm once with each; what only averages is '
        "evaluated in the baseline's run (default: 0)")
    add('--work-dir', type=Path,
        help='folder of the results (default: work_dirs/compare_CONFIG). '
        'Finished runs in it are used, interrupted ones are continued, and '
        'arms and seeds may be added')
    add('--gpus-per-run', type=options.at_least(1), default=1, metavar='N',
        help='processes of each run, on a GPU each; on a CPU too')
    add('--jobs', type=options.at_least(1),
        help='runs at once (default: as many as there are GPUs for; on a '
        'CPU, where a process has one thread, as there are cores for)')
    add('--dry-run', action='store_true',
        help='look at everything, show the commands, and train nothing')
    options.add_training(parser)
    _metric_options(parser)
    add('--cfg-options', nargs='+', action='extend', default=[],
        metavar='KEY=VALUE',
        help='settings that replace those of the config, for all the runs')


def _metric_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add('--metric',
        help='the validation metric to compare by (default: what save_best '
        'names, else mIoU, coco/bbox_mAP, accuracy/top1, ...)')
    add('--rule', choices=['greater', 'less'],
        help='which values of it are better, where its name does not say')


def _report_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add('work_dirs', nargs='+', metavar='WORK_DIR',
        help="a folder that compare.py run has made, or any run's work dir. "
        'NAME=WORK_DIR gives a name: work dirs of one NAME are the seeds of '
        'an arm, and the arms of such a folder become NAME/ARM. An earlier '
        "report's folder is reported again, to --out")
    add('--baseline', metavar='NAME',
        help="the arm that the others are compared with (default: 'baseline', "
        'else the first)')
    _metric_options(parser)
    add('--out', type=Path, metavar='DIR',
        help='folder of the report (default: WORK_DIR/report for one grid, '
        f'else {_DEFAULT_OUT})')
    add('--config',
        help='the path or zoo name of the config that was trained, for what '
        'the model zoo publishes (a grid knows it)')
    add('--title', help="the report's title")


def _summary_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add('tables', nargs='+', metavar='TABLE',
        help="reports' folders, or the points.csv in them")
    add('--keys', nargs='+', default=('final', ),
        choices=['final', 'best', 'area', 'drop'],
        help='what is compared (default: final)')
    add('--baseline', metavar='NAME',
        help="the arm that the others are compared with (default: 'baseline', "
        'else the first)')
    add('--plot', type=Path, metavar='PNG', help='also draw a picture')
    add('--overwrite', action='store_true', help='allow replacing it')


def _sweep_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add('work_dirs', nargs='+', metavar='WORK_DIR',
        help='folders that compare.py run has made, with one value of the '
        'setting each')
    add('--key', default='optim_wrapper.optimizer.lr',
        help='the setting (default: %(default)s)')
    add('--within', type=float, default=1,
        help='how far below its best an arm is still near it, in units of '
        'the metric (default: 1)')
    _metric_options(parser)
    add('--title', help='above the picture')
    options.add_out(parser, 'work_dirs/sweep')


def run(args: Namespace) -> None:
    check_report()
    grid = make_grid(args)
    if args.dry_run:
        prepare(grid, args.jobs)
        print('\n'.join(shlex.join(grid.command(cell)) for cell in grid.cells
                        if grid.host(cell) is None))
    else:
        report_on(train_grid(grid, args.jobs))


def check_report() -> None:
    """Looks for what the report needs, before anything is trained."""
    try:
        import mmpsw.compare.report  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"the comparison's report needs {error.name}, which cannot be "
            "imported; pip install 'mmpsw[tools]'") from error


def make_grid(args: Namespace) -> grids.Grid:
    """The runs that a command line asks for; ValueError for a wrong option."""
    arms = named_arms(args.arms or _DEFAULT_ARMS)
    if len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f'--seeds {" ".join(map(str, args.seeds))} names a '
                         'seed twice; leave one out')
    for pair in args.cfg_options:
        if '=' not in pair:
            raise ValueError(f"--cfg-options takes key=value, but got '{pair}'"
                             '; write for example train_cfg.max_epochs=3')
    flags = [f'--{name}' for name in ('amp', 'auto-scale-lr', 'from-zoo',
                                      'validate-first')
             if getattr(args, name.replace('-', '_'))]
    flags += ['--weights', str(args.weights)] if args.weights else []
    stem = Path(configs.resolve_config(args.config)).stem
    return grids.Grid(
        config=args.config, arms=arms, seeds=tuple(args.seeds),
        work_dir=args.work_dir or Path('work_dirs') / f'compare_{stem}',
        options=tuple(args.cfg_options), flags=tuple(flags),
        processes=args.gpus_per_run, metric=args.metric, rule=args.rule,
        passengers=passengers(arms))


def named_arms(arms: Sequence[str]) -> dict[str, str]:
    """Arms by their names; a ValueError where two are the same."""
    named: dict[str, str] = {}
    seen: dict[str, str] = {}
    known = configs.known_methods()
    for arm in arms:
        settings = repr([configs.load_fragment(part).to_dict()
                         for part in configs.split_arm(arm)])
        name = configs.method_name(arm)
        file = Path(arm.partition(':')[0]).expanduser()
        taken = name.partition(':')[0]
        if name in named or settings in seen:
            raise ValueError(
                f"--arms names an arm twice, because '{arm}' is "
                f"'{seen.get(settings, name)}'; leave one out, or rename a "
                'file')
        if file.is_file() and arm.lower() not in known and (
                taken == 'report' or taken in known
                and file.resolve() != known[taken].resolve()):
            raise ValueError(
                f"'{file}' cannot be an arm, because '{taken}' is "
                f'{"a known method" if taken in known else "the report"} '
                'here; rename the file')
        named[name], seen[settings] = arm, arm
    folders = {configs.folder_name(name) for name in named}
    if len(folders) < len(named):
        raise ValueError('two arms would share a folder, because they differ '
                         'in punctuation only; leave one out')
    return named


def passengers(arms: dict[str, str]) -> tuple[str, ...]:
    """The arms that can ride along in the runs of the baseline."""
    from mmpsw.engine.ride_along import passenger
    found = []
    for name, arm in arms.items():
        if len(configs.split_arm(arm)) == 1:
            try:
                rides = passenger(configs.load_fragment(arm).to_dict())
            except (KeyError, TypeError) as error:
                raise ValueError(f"the arm '{arm}' cannot be used, because its"
                                 f' hook cannot be built: {error}') from error
            found += [name] * (rides is not None)
    return tuple(found)


def train_grid(grid: grids.Grid, jobs: int | None = None) -> grids.Grid:
    """Trains a grid, with its progress on the terminal.

    Args:
        grid: What is to be trained.
        jobs: Runs at once, if not as many as there is room for.

    Returns:
        Grid: With its metric.

    Raises:
        ValueError, FileNotFoundError: Before anything is trained, or after
            the first validation, where it did not log the metric.
        TrainingError: Some runs failed; the report is of the others.
    """
    from mmpsw.compare import training
    grid, room, remarks = prepare(grid, jobs)
    with grids.hold(grid.work_dir) as lock:
        grids.record(grid, remarks)
        failed = training.train(grid, room, lock)
    if failed:
        with suppress(ValueError):  # where there is nothing to report on
            report_on(grid)
        raise training.TrainingError(training.explain(grid, failed))
    return grid


def prepare(grid: grids.Grid, jobs: int | None = None
            ) -> tuple[grids.Grid, list[dict[str, str]], list[str]]:
    """Looks at all that could fail before hours are spent, and says it.

    Returns:
        The grid with its metric, the environments of the runs at once, and
        sentences on what differs from the published training.
    """
    from mmpsw.commands import checks, train
    from mmpsw.compare import training
    from mmpsw.compare.published import differences
    grid.max_steps()
    grid = grid.with_metric()
    for arm in grid.arms:
        args = train.parse_args(grid.arguments(grids.Cell(arm, grid.seeds[0])))
        cfg = train.build_config(args)
        if arm == grids.BASELINE and any(
                configs.is_psw(wrapper)
                for _, wrapper in configs.optim_wrappers(cfg)):
            raise ValueError(
                f"the arm {grids.BASELINE} of '{grid.config}' is psw itself, "
                'because the config has it already; give the stock config')
        checks.check_training(cfg, args.amp)
        if arm == grid.first:
            remarks = differences(grid.config, cfg, grid.processes)
        checks.check_weights(cfg, grid.config, args.weights)
    room = training.slots(visible_gpus(), grid.processes, jobs)
    own = [cell for cell in grid.cells if grid.host(cell) is None]
    riders = [arm for arm in grid.arms if grid.host(
        grids.Cell(arm, grid.seeds[0]))]
    print(f'Runs: {len(own)}, {min(len(room), len(own))} at a time, each in '
          f'{grid.processes} process{"es" * (grid.processes > 1)}; arms: '
          f'{", ".join(grid.arms)}; seeds: '
          f'{", ".join(map(str, grid.seeds))}; {grid.max_steps()} '
          f'{"epochs" if grid.by_epoch() else "iterations"}; a seed has the '
          'same data order in all arms')
    if riders:
        print(f"{', '.join(riders)}: evaluated beside the baseline's runs, "
              'which they do not change')
    if remarks:
        print('What differs from the training that the model zoo '
              'published:\n' + '\n'.join(f'- {text}' for text in remarks))
    print(f'Everything is written to {grid.work_dir}/', flush=True)
    return grid, room, remarks


def visible_gpus() -> list[str]:
    """The GPUs, as CUDA_VISIBLE_DEVICES names them."""
    import torch
    count = torch.cuda.device_count()
    named = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
    return ([name for name in named if name]
            or [str(index) for index in range(count)])[:count]


def report_on(grid: grids.Grid) -> None:
    """Reports as ``compare.py report`` does."""
    report(parse_args(['report', str(grid.work_dir)]))


def report(args: Namespace) -> None:
    """Prints the table and the notes, and writes the report."""
    from mmpsw.compare import comparison, table
    from mmpsw.compare import report as reports
    from mmpsw.compare.notes import notes, title
    only = Path(args.work_dirs[0])
    if len(args.work_dirs) == 1 and (only / table.FILE).is_file():
        if not args.out:
            raise ValueError(
                f"the report in '{only}' would be replaced by a shorter one, "
                'because its table has no notes, configs and commands; give '
                'another folder with --out, or the runs')
        c, found = None, table.load([only])  # an earlier report
        baseline = table.baseline_of(found, args.baseline)
        out, name, zoo, remarks, config = only, only.name, None, [], None
    else:
        c = comparison.read(args.work_dirs, args.metric, args.rule,
                            args.baseline)
        found, baseline = table.long(c), c.baseline
        # Known where all of it comes from grids of one config.
        known = {plan['config'] for plan in c.plans.values()}
        config = args.config or (known.pop() if len(known) == 1 and len(
            c.plans) == len(args.work_dirs) else None)
        is_grid = (len(args.work_dirs) == 1 and only.is_dir()
                   and only != c.first.folder)
        out = only / 'report' if is_grid else _DEFAULT_OUT
        zoo, remarks = _published(args, config, c)
        remarks = [*remarks, *notes(c)]
        name = title(c.first.config) or (
            Path(config.rpartition('::')[2]).stem if config
            else ', '.join(c.arms))
    out = args.out or out
    boxes = [only / 'detections.png', only / 'detections_narrow.png']
    numbers = reports.write_report(
        found, baseline, out, args.title or name, remarks, zoo,
        _commands(args, c), {'What the detectors find': boxes}
        if all(path.is_file() for path in boxes) else {}, c)  # quickstart's
    print(f'{table.finding(numbers, baseline)}\n\n' + table.as_text(
        table.shown(numbers, found, baseline, zoo and zoo.value)))
    published = [*zoo.sentences, zoo.config_url] if zoo else []
    for head, lines in (('', table.explain(numbers, found, baseline)),
                        ('model zoo:\n', published), ('notes:\n', remarks)):
        if lines:
            print(f'\n{head}' + '\n'.join(f'- {line}' for line in lines))
    print('\npage:   ' + '\n        '.join(
        str(out / name) for name in (reports.PAGE, *reports.FILES)))


def summary(args: Namespace) -> None:
    """Prints how often an arm wins, and a table for each key; draws them."""
    from mmpsw.compare import plots, summary, table
    if args.plot:
        plots.check_format(args.plot, args.overwrite)
    found = table.load(args.tables)
    baseline = table.baseline_of(found, args.baseline)
    numbers = table.statistics(found, baseline)
    if len(args.tables) > 1:
        print(f'Better / undecided / worse than {baseline}:\n\n'
              f'{summary.tally(numbers, args.keys)}\nMean gain over '
              f'{baseline}, in points:\n\n'
              f'{summary.gains(numbers, args.keys)}')
    for key in args.keys:
        print(f'{table.KEYS[key].capitalize()}:\n\n'
              f'{summary.as_markdown(numbers, found, key)}')
    print(table.misses(numbers[numbers.key.isin(args.keys)]))
    if args.plot:
        print('picture:', plots.save(plots.plot_differences(
            numbers, baseline, args.keys), args.plot))


def sweep(args: Namespace) -> None:
    """Prints how wide the good range of a setting is, and draws it."""
    from mmpsw.compare import plots, sweep, table
    runs = sweep.read(args.work_dirs, args.key, args.metric, args.rule)
    wide = sweep.robustness(runs, args.within)
    print(f'The last {runs.key.iloc[0]} against {args.key}: means over '
          f'{runs.seed.nunique()} seeds; the best of these, and the range '
          f'around it that is within {args.within:g}:\n')
    out = options.out_folder(args.out or 'work_dirs/sweep',
                             ['sweep.csv', 'sweep.png'], args.overwrite)
    digits = 3 if runs.value.abs().max() <= 1 else 1
    for name in wide:
        form = '{:g}' if name in ('lowest', 'highest') else f'{{:.{digits}f}}'
        wide[name] = wide[name].map(form.format)
    print(wide.to_markdown(disable_numparse=True))
    runs.rename(columns=dict(step='setting'))[[
        'arm', 'seed', 'setting', 'value']].to_csv(
            out / 'sweep.csv', index=False, lineterminator='\n')
    print('\npicture:', plots.save(plots.plot_curves(
        runs, table.baseline_of(runs), args.title or '', log=True),
        out / 'sweep.png'))


def _published(args: Namespace, config: str | None,
               c: 'Comparison') -> tuple['Published | None', list[str]]:
    """The zoo's number, and sentences on what differs from its training.

    Or on why there is no number.
    """
    from mmpsw.compare.published import differences
    from mmpsw.compare.zoo_results import NotPublishedError, find_published
    told = next((plan['published'] for plan in c.plans.values()
                 if 'published' in plan), None)
    reason = ('it is not known from which config these runs were started '
              '(--config says it)')
    try:
        if config is not None:
            zoo = find_published(config, c.first.config, c.metric)
            return zoo, differences(config, c.first.config, None
                                    ) if told is None else told
    except ValueError as error:
        # A grid may be read far from where it was made.
        if args.config and not isinstance(error, NotPublishedError):
            raise
        reason = error
    return None, [*(told or []),
                  f"The model zoo's result is left out: {reason}."]


def _commands(args: Namespace, c: 'Comparison | None') -> list[str]:
    """The commands that make the runs and the report again."""
    commands = []
    for folder, plan in (c.plans if c else {}).items():
        words = ['run', plan['config'], '--arms', *plan['arms'].values(),
                 '--seeds', *plan['seeds'], '--work-dir', folder]
        for key in ('metric', 'rule'):
            words += [f'--{key}', plan[key]] if plan.get(key) else []
        words += [*plan.get('flags', ())]
        if plan.get('processes', 1) > 1:
            words += ['--gpus-per-run', plan['processes']]
        pairs = [f'{key}={value}' for key, value
                 in plan.get('cfg_options', {}).items()]
        commands.append(words + (['--cfg-options', *pairs] if pairs else []))
    words = ['report', *args.work_dirs]
    for key in ('baseline', 'metric', 'rule', 'config', 'title', 'out'):
        value = getattr(args, key)
        words += [] if value is None else [f'--{key}', value]
    return [shlex.join(['python', 'tools/compare.py', *map(str, words)])
            for words in [*commands, words]]


if __name__ == '__main__':
    raise SystemExit(main())

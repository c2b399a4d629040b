"""Measures what averaging costs, beside peers and the memory's bandwidth."""
import os
import platform
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mmpsw import configs
from mmpsw.commands import options
from mmpsw.commands.progress import Bars
from mmpsw.results import out_folder

_DESCRIPTION = '''\
What averaging the weights costs: operations and bytes are counted, times are
medians of rounds in which everything runs once, in one process.
'''
_MODELS = ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
           'mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py',
           'mmpretrain::resnet/resnet50_8xb32_in1k.py')
_DEFAULT_OUT = Path('work_dirs/benchmark')
_COUNT = options.at_least(1)
_DTYPES = ('float32', 'bfloat16', 'float16', 'float64')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``tools/benchmark.py``; returns the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: args.command(args))


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = ArgumentParser(prog='benchmark.py', description=_DESCRIPTION)
    commands = parser.add_subparsers(
        required=True, metavar='sample|step|growth|fused')
    sample = commands.add_parser(
        'sample', help='a sample, a resampling and a swap, beside peers')
    sample.add_argument(
        'config', nargs='?',
        help='whose model is averaged: a path, or a zoo name (default: '
        'parameters made for it)')
    sample.add_argument('--params', type=_COUNT, default=25_000_000,
                        help='made parameters (default: 25e6)')
    sample.add_argument('--tensors', type=_COUNT, default=161,
                        help='... in so many tensors (default: 161)')
    sample.add_argument('--dtype', choices=_DTYPES,
                        help="of the weights (default: float32, or the "
                        "config's)")
    _add_common(sample, run_sample, repeats=50)
    step = commands.add_parser(
        'step', help='a training step with and without averaging')
    step.add_argument('configs', nargs='*', default=_MODELS,
                      help='stock configs (default: RetinaNet R50, UNet, '
                      'ResNet-50)')
    step.add_argument('--size', type=_COUNT, default=64,
                      help='height and width of the images (default: 64)')
    step.add_argument('--batch-size', type=_COUNT, default=2,
                      help='images in a batch (default: 2)')
    step.add_argument('--period', type=_COUNT, default=20,
                      help='steps between two resamplings (default: 20, much '
                      'less than in any real training)')
    _add_common(step, run_step, repeats=10)
    growth = commands.add_parser(
        'growth', help='time against the number of parameters and tensors')
    growth.add_argument(
        '--params', type=_COUNT, nargs='+',
        default=(10**6, 10**7, 10**8, 10**9),
        help='numbers of parameters, in 100 tensors; those that do not fit '
        'the memory are left out (default: 1e6 1e7 1e8 1e9)')
    growth.add_argument(
        '--tensors', type=_COUNT, nargs='+', default=(10, 100, 1000, 10_000),
        help='numbers of tensors, of 1e7 parameters together (default: 10 '
        '100 1000 10000)')
    _add_common(growth, run_growth, repeats=20)
    fused = commands.add_parser(
        'fused', help="an experiment: the sample inside of the optimizer's "
        'own pass, by torch.compile')
    fused.add_argument('--params', type=_COUNT, default=25_000_000,
                       help='parameters (default: 25e6)')
    fused.add_argument('--tensors', type=_COUNT, default=20,
                       help='... in so many tensors (default: 20)')
    _add_common(fused, run_fused, repeats=30)
    return parser.parse_args(argv)


def _add_common(parser: ArgumentParser,
                command: Callable[[Namespace], None], repeats: int) -> None:
    parser.set_defaults(command=command)
    parser.add_argument('--repeats', type=_COUNT, default=repeats,
                        help=f'rounds (default: {repeats})')
    parser.add_argument('--device',
                        help='cpu or cuda (default: a GPU if there is one)')
    options.add_out(parser, str(_DEFAULT_OUT))


def run_sample(args: Namespace) -> None:
    """Measures what ``sample`` says.

    Raises:
        ValueError: Before anything is measured.
    """
    device = _device(args)
    out = _out(args, 'sample.csv')
    from mmpsw.benchmark import report, sampling
    dtype = args.dtype and getattr(torch, args.dtype)
    if args.config:
        from mmpsw.analysis.objective import build_model
        model = build_model(configs.load_config(args.config)).to(device, dtype)
        what = Path(configs.resolve_config(args.config)).stem
    else:
        model = sampling.synthetic(args.params, args.tensors,
                                   dtype or torch.float32, device)
        what = 'made parameters'
    with Bars() as progress:
        costs = sampling.measure(model, args.repeats, progress.parts)
    title = (f'{what}: {costs[0].elements:,} parameters in '
             f'{costs[0].tensors} tensors, {_machine(device)}')
    Console().print(report.cost_table(costs, title))
    report.write_costs(out / 'sample.csv', costs, _machine(device))
    print(out / 'sample.csv')


def run_step(args: Namespace) -> None:
    """Measures what ``step`` says.

    Raises:
        ValueError: Before anything is measured.
    """
    device = _device(args)
    if args.period < 4:
        raise ValueError(f'--period {args.period} is too short for a window '
                         'of its last quarter; give 4 or more')
    stock = {name: configs.load_config(name) for name in args.configs}
    out = _out(args, 'step.csv')
    from mmpsw.benchmark import report, steps
    results = {}
    with Bars() as progress:
        for name, cfg in stock.items():
            stem = Path(configs.resolve_config(name)).stem
            results[name] = steps.measure(
                cfg, args.batch_size, args.size, args.period, args.repeats,
                progress.parts, stem)
            progress.console.print(report.step_table(
                results[name], f'{stem}, {args.batch_size} x 3 x {args.size} '
                f'x {args.size}, {_machine(device)}'))
    report.write_steps(out / 'step.csv', results, _machine(device))
    print(out / 'step.csv')


def run_growth(args: Namespace) -> None:
    """Measures what ``growth`` says.

    Raises:
        ValueError: Before anything is measured.
    """
    device = _device(args)
    out = _out(args, 'growth.csv', 'growth.png')
    from mmpsw.benchmark import report, sampling
    fits = [n for n in args.params
            if sampling.needed_bytes(n) <= _free_memory(device)]
    if not fits:
        raise ValueError(
            f'--params {args.params[0]} does not fit the memory, of which '
            f'{sampling.needed_bytes(args.params[0]) / 1e9:.3g} GB are '
            'needed; give less')
    for left_out in sorted(set(args.params) - set(fits)):
        print(f'{left_out:.3g} parameters are left out: they need '
              f'{sampling.needed_bytes(left_out) / 1e9:.3g} GB of memory')

    def costs(elements: int, tensors: int) -> list[Any]:
        model = sampling.synthetic(elements, tensors, torch.float32, device)
        return sampling.measure(model, args.repeats, progress.parts,
                                sampling.GROWTH)

    with Bars() as progress:
        by_size = [c for n in fits for c in costs(n, min(n, 100))]
        by_tensors = [c for m in args.tensors
                      for c in costs(max(10**7, m), m)]
    for rows in (by_size, by_tensors):
        for size in dict.fromkeys((c.elements, c.tensors) for c in rows):
            Console().print(report.cost_table(
                [c for c in rows if (c.elements, c.tensors) == size],
                f'{size[0]:,} parameters in {size[1]} tensors, '
                f'{_machine(device)}'))
    report.write_costs(out / 'growth.csv', by_size + by_tensors,
                       _machine(device))
    print(out / 'growth.csv')
    print(report.draw_growth(by_size, by_tensors, out / 'growth.png'))


def run_fused(args: Namespace) -> None:
    """Measures what ``fused`` says.

    Raises:
        ValueError: Before anything is measured.
    """
    device = _device(args)
    out = _out(args, 'fused.csv')
    from mmpsw.benchmark import fused, report
    with Bars() as progress:
        updates = fused.measure(args.params, args.tensors, device,
                                args.repeats, progress.parts)
    what = f'{args.params:,} parameters in {args.tensors} tensors'
    Console().print(report.step_table(
        updates, f'an update of SGD, {what}, {_machine(device)}'))
    report.write_steps(out / 'fused.csv', {what: updates}, _machine(device))
    print(out / 'fused.csv')


def _device(args: Namespace) -> torch.device:
    if args.device is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(args.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device '{args.device}' cannot be used, because "
                         'torch does not find it; give cpu') from error
    return device


def _machine(device: torch.device) -> str:
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    cores = torch.get_num_threads()
    return f'{platform.machine()} CPU, {cores} thread{"s" * (cores > 1)}'


def _free_memory(device: torch.device) -> int:
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def _out(args: Namespace, *files: str) -> Path:
    return out_folder(args.out or _DEFAULT_OUT, files, args.overwrite)

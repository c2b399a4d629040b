"""Measures what the zeros of pruned gradients are worth on one CPU thread.

    sparse_backward.py layers [CONFIG ...]    each shape of convolution
    sparse_backward.py step CONFIG            whole training steps

Times are of the process, so that others on the machine count less; medians of
rounds in which everything runs once, in an order that changes.
"""
import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner, set_random_seed
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from mmpsw import configs
from mmpsw.commands import options
from mmpsw.engine import GradientPruningHook
from mmpsw.methods.gradient_pruning.sparse import _Rows
from mmpsw.models import build_model, init_scope

MODELS = ('mmpretrain::resnet/resnet18_8xb32_in1k.py',
          'mmpretrain::resnet/resnet50_8xb32_in1k.py')
ZEROS = (0.5, 0.7, 0.9, 0.95, 0.99)
OUT = 'work_dirs/sparse_backward'
FORMATS = {'dense': torch.contiguous_format,
           'dense, channels last': torch.channels_last}

Calls = dict[str, Callable[[], Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: args.command(args))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    number = options.at_least(1)
    parser = argparse.ArgumentParser(
        prog='sparse_backward.py', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar='layers|step')
    layers = commands.add_parser('layers', help=run_layers.__doc__)
    layers.add_argument('configs', nargs='*', default=MODELS,
                        help='classifiers (default: ResNet-18, ResNet-50)')
    layers.add_argument('--size', type=number, default=224,
                        help='height and width of the images (default: 224)')
    layers.add_argument('--batch-size', type=number, default=4,
                        help='images in a batch (default: 4)')
    step = commands.add_parser('step', help=run_step.__doc__)
    options.add_config(step)
    step.add_argument('--rates', type=float, nargs='+', default=[0.9, 0.99],
                      help='(default: 0.9 0.99)')
    step.add_argument('--warm-up', type=number, default=20,
                      help='steps before the timed ones (default: 20)')
    options.add_cfg_options(step)
    for sub, command, repeats in ((layers, run_layers, 5),
                                  (step, run_step, 20)):
        sub.set_defaults(command=command)
        sub.add_argument('--repeats', type=number, default=repeats,
                         help='rounds (default: %(default)s)')
        options.add_out(sub, OUT)
    return parser.parse_args(argv)


def run_layers(args: argparse.Namespace) -> None:
    """The passes of each shape of convolution, at several shares of zeros."""
    every = {name: configs.load_config(name) for name in args.configs}
    out = options.out_folder(args.out or OUT, ['layers.csv'], args.overwrite)
    torch.set_num_threads(1)
    rows = []
    for name, cfg in every.items():
        images = torch.zeros(args.batch_size, 3, args.size, args.size)
        found = shapes(build_model(cfg).cpu(), images)
        for shape, conv in track(found.items(), description=name):
            rows += [dict(config=name, **row)
                     for row in layer_times(shape, conv, args.repeats)]
    table = pd.DataFrame(rows)
    report(table, out / 'layers.csv')
    print(speedups(table).round(2))


def speedups(table: pd.DataFrame) -> pd.DataFrame:
    """How much faster than dense all shapes' backward passes are together.

    Dense is the faster of both memory formats, for each shape and part.
    """
    shape = ['config', 'inputs', 'outputs', 'size', 'kernel', 'stride', 'part']
    passes = table[table.part != 'forward']
    dense = passes[passes.zeros == 0].groupby(shape).milliseconds.min()
    sparse = passes[passes.zeros > 0].join(dense.rename('dense'), on=shape)
    sums = sparse.groupby(['config', 'kind', 'zeros'])[
        ['dense', 'milliseconds']].sum()
    return (sums.dense / sums.milliseconds).unstack()


def shapes(model: nn.Module, images: Tensor) -> dict[tuple, nn.Conv2d]:
    """A convolution of each kind, and the size of its input."""
    found: dict[tuple, nn.Conv2d] = {}

    def note(conv: nn.Conv2d, args: tuple) -> None:
        key = (*args[0].shape, conv.out_channels, *conv.kernel_size,
               *conv.stride)
        found.setdefault(key, conv)

    for module in model.modules():
        if (isinstance(module, nn.Conv2d) and module.groups == 1
                and module.in_channels % 16 == 0):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        model(images)
    return found


def layer_times(shape: tuple, conv: nn.Conv2d,
                repeats: int) -> Iterator[dict[str, Any]]:
    """Milliseconds of each pass, for each kind and share of zeros."""
    n, inputs, height, width, outputs, kernel, _, stride, _ = shape
    x, weight = torch.randn(shape[:4]), conv.weight.detach()
    geometry = (conv.stride, conv.padding, conv.dilation)
    out = functional.conv2d(x, weight, None, *geometry)
    calls: Calls = {}
    for kind, layout in FORMATS.items():
        tensors = [t.contiguous(memory_format=layout)
                   for t in (torch.randn_like(out), x, weight)]
        calls[f'{kind}|forward|0'] = partial(
            functional.conv2d, *tensors[1:], None, *geometry)
        for name, mask in (('input', [True, False, False]),
                           ('weight', [False, True, False])):
            calls[f'{kind}|{name}|0'] = partial(
                torch.ops.aten.convolution_backward, *tensors, None, *geometry,
                False, [0, 0], 1, mask)
    last, filters = (t.contiguous(memory_format=torch.channels_last)
                     for t in (x, weight))
    for zeros in ZEROS:
        grad = (torch.randn_like(out) * (torch.rand_like(out) >= zeros))
        grad = grad.contiguous(memory_format=torch.channels_last)
        rows = partial(_Rows, grad, x.shape, weight.shape, *geometry)
        calls[f'sparse|input|{zeros}'] = partial(
            lambda rows: rows().backward_input(filters), rows)
        calls[f'sparse|weight|{zeros}'] = partial(
            lambda rows: rows().backward_weight(last), rows)
        calls[f'CSR|input|{zeros}'] = partial(csr_input, grad, x, weight,
                                              geometry)
        calls[f'CSR|weight|{zeros}'] = partial(csr_weight, grad, x, weight,
                                               geometry)
    times = interleaved(calls, range(repeats)).median()
    for name, seconds in times.items():
        kind, part, zeros = name.split('|')
        yield dict(
            batch=n, inputs=inputs, outputs=outputs, size=height,
            kernel=kernel, stride=stride, kind=kind, part=part,
            zeros=float(zeros), milliseconds=1e3 * seconds,
            gigaflops=2 * out.numel() * weight[0].numel() / seconds / 1e9)


def csr_input(grad: Tensor, x: Tensor, weight: Tensor,
              geometry: tuple) -> Tensor:
    """torch's sparse matrices, which MKL multiplies: pixels x outputs."""
    matrix = grad.permute(0, 2, 3, 1).flatten(0, 2).to_sparse_csr()
    columns = (matrix @ weight.flatten(1)).view(len(x), -1, weight[0].numel())
    return functional.fold(columns.transpose(1, 2), x.shape[2:],
                           weight.shape[2:], geometry[2], geometry[1],
                           geometry[0])


def csr_weight(grad: Tensor, x: Tensor, weight: Tensor,
               geometry: tuple) -> Tensor:
    """... and outputs x pixels, by what ``unfold`` makes of the input."""
    matrix = grad.transpose(0, 1).flatten(1).to_sparse_csr()
    columns = functional.unfold(x, weight.shape[2:], geometry[2], geometry[1],
                                geometry[0])
    return (matrix @ columns.transpose(1, 2).flatten(0, 1)).view_as(weight)


def run_step(args: argparse.Namespace) -> None:
    """Training steps of a config: stock, pruned, and without the zeros."""
    cfg = configs.load_config(args.config)
    configs.merge(cfg, args.cfg_options or {}, '--cfg-options')
    out = options.out_folder(args.out or OUT, ['step.csv'], args.overwrite)
    torch.set_num_threads(1)
    MMLogger.get_current_instance().setLevel('WARNING')
    init_scope(cfg)
    loader = Runner.build_dataloader(
        dict(cfg.train_dataloader, num_workers=0, persistent_workers=False,
             prefetch_factor=None), seed=0)
    batches = list(islice(loader, args.warm_up))
    arms = {'baseline': Arm(cfg, batches),
            'baseline, channels last': Arm(cfg, batches, last=True)}
    for rate in args.rates:
        arms[f'pruned, {rate}'] = Arm(cfg, batches, rate=rate)
        arms[f'pruned, {rate}, sparse'] = Arm(cfg, batches, rate=rate,
                                              sparse=True)
    interleaved(arms, range(args.warm_up))
    for arm in arms.values():
        arm.forget()
    times = interleaved(arms, range(args.repeats))
    ratios = times.div(times['baseline'], axis=0)
    report(pd.DataFrame([dict(
        name=name, milliseconds=1e3 * times[name].median(),
        ratio=ratios[name].median(), ratio_q1=ratios[name].quantile(0.25),
        ratio_q3=ratios[name].quantile(0.75), **arm.zeros())
        for name, arm in arms.items()]), out / 'step.csv')


class Arm:
    """One way to train: a call is a step."""

    def __init__(self, cfg: Config, batches: list, last: bool = False,
                 **keys: Any):
        set_random_seed(0)
        self.model = build_model(cfg).cpu()
        self.model.init_weights()
        self.model.train()
        if last:
            self.model.to(memory_format=torch.channels_last)
        self.optim = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.batches = batches
        self.run = SimpleNamespace(
            model=self.model, cfg=Config(), iter=0,
            message_hub=MessageHub.get_instance('sparse_backward'))
        self.hook = GradientPruningHook(**keys) if keys else None
        if self.hook:
            self.hook.before_train(self.run)

    def __call__(self) -> None:
        if self.hook:
            self.hook.before_train_iter(self.run)
        batch = self.batches[self.run.iter % len(self.batches)]
        self.model.train_step(batch, self.optim)
        if self.hook:
            self.hook.after_train_iter(self.run)
        self.run.iter += 1

    def forget(self) -> None:
        """Count zeros from here on."""
        for layer in self.hook.layers if self.hook else ():
            layer.zeros = layer.count = 0.

    def zeros(self) -> dict[str, float]:
        """Their share, and the multiply-adds of the backward passes that
        they would save: a number of the gradient costs as many as a filter
        has weights, in each of the two passes."""
        if not self.hook:
            return {}
        layers = self.hook.layers
        work = [layer.count * self.model.get_submodule(layer.name).weight[0]
                .numel() for layer in layers]
        saved = sum(w * layer.zeros / layer.count
                    for w, layer in zip(work, layers) if layer.count)
        return dict(
            zeros=sum(layer.zeros for layer in layers) / sum(
                layer.count for layer in layers),
            multiply_adds_saved=saved / sum(work))


def interleaved(calls: Mapping[str, Callable], rounds: range) -> pd.DataFrame:
    """Seconds of the process for each call and round; first one to warm up."""
    order, rows = list(calls), []
    for i in range(-1, len(rounds)):
        random.Random(i).shuffle(order)
        row = {}
        for name in order:
            begin = time.process_time()
            calls[name]()
            row[name] = time.process_time() - begin
        rows.append(row)
    return pd.DataFrame(rows[1:])[list(calls)]


def report(table: pd.DataFrame, path: Any) -> None:
    """Write a table, and print it."""
    table.assign(torch=torch.__version__).to_csv(path, index=False)
    print(table.to_string(index=False, na_rep='',
                          float_format='{:.4g}'.format))
    print(path)


if __name__ == '__main__':
    sys.exit(main())

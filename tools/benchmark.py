"""Measures what a training step costs with each method, all hooks included.

    benchmark.py step [CONFIG ...] [--arms ARM ...]

Times are of rounds in which every arm takes a step, in an order that changes;
ratios are within a round.
"""
import argparse
import gc
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from rich.console import Console
from rich.progress import track

from mmpsw import configs
from mmpsw.commands import options
from mmpsw.commands.options import out_folder
from mmpsw.configs import split_arm

MODELS = ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
          'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
          'mmpretrain::resnet/resnet50_8xb32_in1k.py')
ARMS = ('baseline', 'psw', 'pswa', 'pwalks', 'pswm', 'ema')
DEFAULT_OUT = Path('work_dirs/benchmark')
QUARTILES = [0.5, 0.25, 0.75]

Call = Callable[[], Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: args.command(args))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    number = options.at_least(1)
    parser = argparse.ArgumentParser(
        prog='benchmark.py', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar='step')
    step = commands.add_parser(
        'step', help='a training step of each arm, with all its hooks')
    step.add_argument('configs', nargs='*', default=MODELS, help='paths or '
                      'zoo names (default: RetinaNet, PSPNet and ResNet-50)')
    step.add_argument('--arms', nargs='+', default=ARMS, metavar='ARM',
                      help='what --with takes, or several joined by +; ratios '
                      f'are to the first (default: {" ".join(ARMS)})')
    step.add_argument('--amp', action='store_true', help='mixed precision')
    step.add_argument('--size', type=number, default=64,
                      help='height and width of the images (default: 64)')
    step.add_argument('--batch-size', type=number, default=2,
                      help='images in a batch (default: 2)')
    step.add_argument('--period', type=options.at_least(8), default=20,
                      help='steps between two resamplings (default: 20, much '
                      'less than in any real run)')
    step.add_argument('--repeats', type=number, default=10,
                      help='periods that are timed (default: 10)')
    options.add_out(step, 'work_dirs/benchmark')
    step.set_defaults(command=run_step)
    return parser.parse_args(argv)


def run_step(args: argparse.Namespace) -> None:
    """Measures steps of each config."""
    every = {name: {arm: arm_config(name, arm, args) for arm in args.arms}
             for name in args.configs}
    out = out_folder(args.out or DEFAULT_OUT, ['step.csv'], args.overwrite)
    report(pd.concat([
        step_costs(arms, args.batch_size, args.size, args.period,
                   args.repeats).assign(config=name)
        for name, arms in every.items()]), out / 'step.csv')


def arm_config(name: str, arm: str, args: argparse.Namespace) -> Config:
    """A config with what ``--with`` adds, for images of noise."""
    cfg = configs.load_config(name)
    # So small a rate that noise for data does no harm to the weights.
    configs.apply_fragments(
        cfg, [configs.load_fragment(part) for part in split_arm(arm)],
        args.amp, {'optim_wrapper.optimizer.lr': 1e-6})
    set_input_size(cfg, args.size)
    return cfg


def step_costs(arms: Mapping[str, Config], batch_size: int, size: int,
               period: int, repeats: int) -> pd.DataFrame:
    """What a training step costs in each arm.

    All train on one batch of noise, and take their steps in turn. Times are
    means over a period, which ends with a resampling.

    Args:
        arms (Dict[str, Config]): What is trained, first the baseline.
        batch_size (int): Images in a batch.
        size (int): Their height and width.
        period (int): Steps in an epoch, and so between two resamplings.
        repeats (int): How many periods are timed.

    Returns:
        DataFrame: The times of :func:`timed`, and ``megabytes``: the peak
        that an arm with its model and its steps takes, on a GPU.
    """
    built, peaks = {}, {}
    with TemporaryDirectory() as folder:
        for name, cfg in arms.items():
            if torch.cuda.is_available():
                gc.collect()
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
            step = training_step(cfg, synthetic_batch(cfg, batch_size, size),
                                 period, f'{folder}/{name}')
            for _ in range(period):
                step()
            if torch.cuda.is_available():
                peaks[name] = (torch.cuda.max_memory_allocated()
                               - before) / 1e6
            built[name] = step
        times = interleaved(built, track_rounds(repeats * period,
                                                Path(cfg.filename).stem))
    table = timed(times.groupby(times.index // period).mean(), list(arms)[0])
    return table.assign(megabytes=table.name.map(peaks))


def interleaved(calls: Mapping[str, Call],
                rounds: Iterable[int]) -> pd.DataFrame:
    """Times all calls once a round, in an order that changes.

    Args:
        calls (Dict[str, Callable]): What is timed.
        rounds (Iterable[int]): Its length is the number of rounds, behind
            three that do not count.

    Returns:
        DataFrame: Seconds: a column for each call, a row for each round.
    """
    order, shuffle = list(calls), random.Random(0).shuffle

    def one_round() -> dict[str, float]:
        shuffle(order)
        return {name: seconds(calls[name]) for name in order}

    for _ in range(3):
        one_round()
    return pd.DataFrame([one_round() for _ in rounds])[list(calls)]


def seconds(call: Call) -> float:
    """How long one call takes, with what it left a GPU to do."""
    synchronize()
    begin = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - begin


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(times: pd.DataFrame, base: str) -> pd.DataFrame:
    """Medians and quartiles of the times, and of their ratios in a round."""
    ratios = times.div(times[base], axis=0)
    table = pd.concat([times.quantile(QUARTILES).T,
                       ratios.quantile(QUARTILES).T], axis=1)
    table.columns = ['seconds', 'seconds_q1', 'seconds_q3',
                     'ratio', 'ratio_q1', 'ratio_q3']
    return table.rename_axis('name').reset_index()


class Batches(list):
    """One batch again and again, in place of a data loader."""
    dataset = sampler = None


def training_step(cfg: Config, batch: dict, period: int, folder: str) -> Call:
    """One iteration of a run: the model's step, and all hooks around it.

    But for the one that logs, which resets a GPU's peak of memory.

    Args:
        cfg (Config): What is trained. The weights stay those that the
            constructors leave, and no data are read.
        batch (dict): What each iteration gets.
        period (int): Iterations in an epoch.
        folder (str): For the log.

    Returns:
        Callable: Each call trains one iteration.
    """
    runner = Runner(
        cfg.model, folder, Batches([batch] * period),
        train_cfg=dict(by_epoch=True, max_epochs=1 << 20),
        optim_wrapper=cfg.optim_wrapper, custom_hooks=cfg.get('custom_hooks'),
        default_hooks=dict(checkpoint=None, logger=None),
        data_preprocessor=cfg.get('data_preprocessor'), log_level='ERROR',
        default_scope=cfg.default_scope, experiment_name=folder, cfg=cfg)
    runner._init_model_weights = lambda: None  # nothing is downloaded
    loop = runner._train_loop = runner.build_train_loop(runner._train_loop)

    def begin() -> None:
        runner.call_hook('before_train')
        runner.call_hook('before_train_epoch')
        runner.model.train()

    loop.run = begin
    runner.train()
    indices = cycle(range(period))
    return lambda: loop.run_iter(next(indices), batch)


def set_input_size(cfg: Config, size: int) -> None:
    """mmseg pads a batch to the size that its config says, LSJ to 1024."""
    for holder in (cfg, cfg.model):
        preprocessor = holder.get('data_preprocessor') or {}
        if preprocessor.get('size') is not None:
            preprocessor['size'] = (size, size)
        preprocessor.pop('batch_augments', None)


def synthetic_batch(cfg: Config, batch_size: int, size: int) -> dict:
    """Noise with labels, as a data loader of the config would give it.

    Raises:
        ValueError: The config is of none of the three frameworks.
    """
    scope = configs.framework(cfg)
    if scope not in configs.FRAMEWORKS:
        raise ValueError(
            f"a config of '{scope}' cannot be timed, because "
            'only the batches of mmdet, mmseg and mmpretrain are known; give '
            'one of theirs')
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch_size, 3, size, size),
                           generator=generator, dtype=torch.uint8)
    return dict(inputs=images if scope == 'mmpretrain' else list(images),
                data_samples=[_sample_of(scope, size) for _ in images])


def _sample_of(scope: str, size: int) -> Any:
    """An image's labels: class 0, a box in the middle, or all background."""
    if scope == 'mmpretrain':
        from mmpretrain.structures import DataSample
        return DataSample().set_gt_label(0)
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'),
                           (size, size))
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample
        labels = torch.zeros(1, size, size, dtype=torch.long)
        return SegDataSample(metainfo=shapes,
                             gt_sem_seg=PixelData(data=labels))
    from mmdet.structures import DetDataSample
    boxes = torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * size
    return DetDataSample(
        metainfo=dict(shapes, scale_factor=(1., 1.)),
        gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([0])))


def report(table: pd.DataFrame, path: Path) -> None:
    """Write a table with the machine in it, and print it."""
    device = (torch.cuda.get_device_name() if torch.cuda.is_available() else
              f'{platform.machine()} CPU, {torch.get_num_threads()} threads')
    table.assign(device=device, torch=torch.__version__).to_csv(
        path, index=False)
    print(f'{device}; times are medians, ratio is to the first row, with the '
          'quartiles q1 and q3')
    print(table.drop(columns=['seconds_q1', 'seconds_q3']).to_string(
        index=False, na_rep='', float_format='{:.4g}'.format))
    print(path)


def track_rounds(count: int, description: str) -> Iterable[int]:
    """Shows the progress on stderr, with the time left."""
    return track(range(count), description, console=Console(stderr=True))


if __name__ == '__main__':
    sys.exit(main())

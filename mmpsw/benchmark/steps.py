"""A whole training step of a stock model, with and without averaging."""
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage, StochasticWeightAverage
from mmengine.optim import OptimWrapper
from mmengine.structures import InstanceData, PixelData
from torch import nn

from mmpsw.analysis.objective import build_model
from mmpsw.engine import PSWOptimWrapper
from mmpsw.engine.averaging.buffers import owned_buffers

from .timing import Spread, interleaved, ratios

__all__ = ['BASELINE', 'Step', 'measure', 'synthetic_batch']

BASELINE = 'baseline'


@dataclass(frozen=True)
class Step:
    """The time of a training step.

    Attributes:
        name (str): What averages.
        time (Spread): Seconds for a step, in the mean over a period.
        ratio (Spread): Over the baseline's.
    """

    name: str
    time: Spread
    ratio: Spread


def measure(cfg: Config, batch_size: int, size: int, period: int,
            repeats: int, track: Callable[[Sequence, str], Iterable],
            description: str) -> list[Step]:
    """Time periods of training steps, one step of each arm in turn.

    All arms train one model on one batch of noise, so that they differ in
    nothing but the averaging. A period ends with a resampling (SWA: has one
    sample); real ones are much longer, which makes it cheaper.

    Args:
        cfg (Config): Of mmdet, mmseg or mmpretrain.
        batch_size (int): Images in the batch.
        size (int): Their height and width, in pixels.
        period (int): Steps in a period.
        repeats (int): Periods, each with its own ratio.
        track (Callable): Goes through the steps, and shows progress.
        description (str): Of the progress.

    Returns:
        List[Step]: The baseline, then the others.
    """
    logger = MMLogger.get_current_instance()
    logger.setLevel(logging.WARNING)  # each resampling would be a line
    _set_input_size(cfg, size)
    model = build_model(cfg)
    batch = synthetic_batch(cfg, batch_size, size)
    arms = _arms(model, batch, period)
    device = next(model.parameters()).device
    times = interleaved(
        arms, track(range(repeats * period), description), device,
        warm_up=period)
    periods = {name: _sums(values, period) for name, values in times.items()}
    return [
        Step(name, Spread.of(total / period for total in totals),
             ratios(totals, periods[BASELINE]))
        for name, totals in periods.items()
    ]


def synthetic_batch(cfg: Config, batch_size: int, size: int) -> dict:
    """Noise with labels, as a data loader of the config would give it.

    Raises:
        ValueError: The config is of none of the three frameworks.
    """
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(256, (3, size, size), generator=generator).byte()
        for _ in range(batch_size)
    ]
    scope = cfg.get('default_scope')
    if scope not in _SAMPLES:
        raise ValueError(
            f"a config with default_scope='{scope}' cannot be timed, because "
            'only the batches of mmdet, mmseg and mmpretrain are known; give '
            'one of theirs')
    sample = _SAMPLES[scope]
    if scope == 'mmpretrain':
        images = torch.stack(images)
    return dict(inputs=images,
                data_samples=[sample(size) for _ in range(batch_size)])


def _arms(model: nn.Module, batch: dict,
          period: int) -> dict[str, Callable[[], Any]]:

    def step(wrapper: OptimWrapper) -> None:
        model.train_step(batch, wrapper)

    def sgd() -> torch.optim.Optimizer:
        # So small a rate that noise for data does no harm to the weights.
        return torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad],
            lr=1e-6, momentum=0.9, weight_decay=1e-4)

    def psw(**technique: Any) -> Callable[[], None]:
        wrapper = PSWOptimWrapper(
            sgd(), dict(technique, period=period, by_epoch=False))
        wrapper.attach(buffers=owned_buffers(model, [('', wrapper)])[''])
        return lambda: step(wrapper)

    def averaged(kind: type, interval: int) -> Callable[[], None]:
        wrapper, average = OptimWrapper(sgd()), kind(model)
        counts = iter(range(1, 1 << 60))

        def train() -> None:
            step(wrapper)
            if next(counts) % interval == 0:
                average.update_parameters(model)

        return train

    baseline = OptimWrapper(sgd())
    return {
        BASELINE: lambda: step(baseline),
        'PSWA': psw(type='PSWA'),
        'PWALKS, last=0.25': psw(type='PWALKS', last=0.25),
        'PSWM': psw(type='PSWM'),
        'EMA of EMAHook': averaged(ExponentialMovingAverage, 1),
        'SWA, once a period': averaged(StochasticWeightAverage, period),
    }


def _set_input_size(cfg: Config, size: int) -> None:
    """mmseg pads a batch to the size that its config says."""
    model = cfg.get('model', {})
    for preprocessor in (cfg.get('data_preprocessor'),
                         model.get('data_preprocessor')):
        if preprocessor and preprocessor.get('size') is not None:
            preprocessor['size'] = (size, size)


def _detection_sample(size: int) -> Any:
    from mmdet.structures import DetDataSample
    box = torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * size
    sample = DetDataSample(
        gt_instances=InstanceData(bboxes=box, labels=torch.tensor([0])))
    sample.set_metainfo(dict(
        img_shape=(size, size), ori_shape=(size, size),
        pad_shape=(size, size), scale_factor=(1., 1.)))
    return sample


def _segmentation_sample(size: int) -> Any:
    from mmseg.structures import SegDataSample
    labels = torch.zeros(1, size, size, dtype=torch.long)
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    sample.set_metainfo(dict(img_shape=(size, size), ori_shape=(size, size)))
    return sample


def _classification_sample(size: int) -> Any:
    from mmpretrain.structures import DataSample
    return DataSample().set_gt_label(0)


_SAMPLES = {
    'mmdet': _detection_sample,
    'mmseg': _segmentation_sample,
    'mmpretrain': _classification_sample,
}


def _sums(values: Sequence[float], count: int) -> list[float]:
    """Of each ``count`` values that follow one another."""
    return [sum(values[i:i + count]) for i in range(0, len(values), count)]

"""What a period's mean is the mean of: a Hook that records the samples."""
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from mmpsw.engine.averaging.optim_wrapper import PSWOptimWrapperMixin
from mmpsw.engine.averaging.settings import HOW_TO_ENABLE
from mmpsw.registry import HOOKS
from mmpsw.results import write_csv

from .spread import Histogram, LayerSpread, Spread

__all__ = ['PeriodSpread', 'WeightDistributionHook', 'write_period']


@dataclass(frozen=True)
class PeriodSpread:
    """The spread of the weights that were sampled in one period.

    Attributes:
        name (str): Of the files: ``iter_264``, where the period ended.
        technique (str): PSWA, PWALKS or PSWM.
        first, last (int): The iterations of the first and last sample.
        layers (List[LayerSpread]): In the model's order.
        histograms (List[Histogram]): Of a few layers.
    """

    name: str
    technique: str
    first: int
    last: int
    layers: list[LayerSpread]
    histograms: list[Histogram]

    @property
    def title(self) -> str:
        """What it is, in a line."""
        return (f'{self.technique}: {self.layers[0].samples} samples, '
                f'iterations {self.first} to {self.last}')


@HOOKS.register_module()
class WeightDistributionHook(Hook):
    """Records the spread of the sampled weights in each period.

    At a period's end it writes, for each trainable parameter, the mean over
    its elements of their standard deviation over the samples, and the shift
    from the last weights to the mean, as ``iter_N.csv`` and ``iter_N.png``;
    and for a few layers the distribution of the standardised weights, as
    ``iter_N_histograms.csv`` and ``.png``. The samples are those of the
    PSWOptimWrapper; after a resume inside of a period they are the rest of
    them.

    It costs three fp64 and one more copy of the weights, and two passes over
    them for each update: for looking, not for every training.

    .. code-block:: python

        custom_hooks = [dict(type='mmpsw.PSWHook'),
                        dict(type='mmpsw.WeightDistributionHook')]

    Args:
        out (str, optional): The folder to write to. Defaults to
            ``weight_distribution`` beside the run's log.
        histograms (int): For how many layers. Defaults to 4.

    Attributes:
        periods (List[PeriodSpread]): Those that have ended.

    Raises:
        ValueError: ``histograms`` < 0; or, when the training starts, there
            is no PSWOptimWrapper.
    """

    # Before PSWHook, which takes the resampler's newest result away.
    priority = 'HIGH'

    def __init__(self, out: str | None = None, histograms: int = 4):
        if not isinstance(histograms, int) or histograms < 0:
            raise ValueError(f'histograms={histograms!r} is not possible: '
                             'use an integer >= 0.')
        self.out = out
        self.histograms = histograms
        self.periods: list[PeriodSpread] = []
        self._recorders: list[_Recorder] = []

    def before_train(self, runner: Runner) -> None:
        """Begin to look at the optimizers' updates."""
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        names = {param: name for name, param in model.named_parameters()}
        wrappers = _psw_wrappers(runner.optim_wrapper)
        if is_main_process():
            self._recorders = [
                _Recorder(wrapper, names, self.histograms)
                for wrapper in wrappers
            ]

    def before_train_iter(self, runner: Runner, *args: Any,
                          **kwargs: Any) -> None:
        """Note how many samples there are."""
        for recorder in self._recorders:
            recorder.before_update()

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Take the sample that the resampler took; write where one ends."""
        for recorder in self._recorders:
            period = recorder.after_update(runner.iter + 1)
            if period is not None:
                self.periods.append(period)
                write_period(period, self._folder(runner))

    def after_train(self, runner: Runner) -> None:
        """Look no more."""
        for recorder in self._recorders:
            recorder.detach()
        self._recorders = []

    def _folder(self, runner: Runner) -> Path:
        if self.out is not None:
            return Path(self.out)
        return Path(runner.log_dir) / 'weight_distribution'


class _Recorder:
    """The spread of one wrapper's samples.

    The last update of a period is overwritten by the resampling at once, so
    that each update is copied right after the optimizer's step. Whether it
    was a sample is read off the resampler's counts afterwards.
    """

    def __init__(self, wrapper: PSWOptimWrapperMixin,
                 names: dict[Tensor, str], histograms: int):
        self.wrapper = wrapper
        self.resampler = wrapper.resampler
        self.names = names
        self.histograms = histograms
        self.first = 0
        self.spread: Spread | None = None
        self._weights: dict[str, Tensor] = {}
        self._copies: list[Tensor] = []
        self._handle = wrapper.optimizer.register_step_post_hook(self._copy)

    def detach(self) -> None:
        self._handle.remove()

    def before_update(self) -> None:
        self._samples = self.resampler.samples
        self._newest = self.resampler.newest

    def after_update(self, iteration: int) -> PeriodSpread | None:
        newest = self.resampler.newest
        ended = newest is not None and newest is not self._newest
        samples = newest.samples if ended else self.resampler.samples
        if samples > self._samples:
            self._take(iteration)
        if not ended or self.spread is None:
            return None
        period = self._summary(iteration)
        self.spread = None
        return period

    @torch.no_grad()
    def _copy(self, optimizer: Optimizer, *_: Any) -> None:
        """After a step that happened."""
        if self.spread is None:  # between windows they may be (un)frozen
            self._weights = {
                self.names.get(param, f'number {index}'): param
                for index, param in enumerate(
                    param for group in optimizer.param_groups
                    for param in group['params'])
                if param.requires_grad and param.is_floating_point()
            }
            self._copies = [
                torch.empty_like(param, requires_grad=False)
                for param in self._weights.values()
            ]
        torch._foreach_copy_(self._copies, list(self._weights.values()))

    def _take(self, iteration: int) -> None:
        if self.spread is None:
            copies = dict(zip(self._weights, self._copies))
            self.spread = Spread(copies, _evenly(copies, self.histograms))
            self.first = iteration
        self.spread.update(self._copies)

    def _summary(self, iteration: int) -> PeriodSpread:
        prefix = f'{self.wrapper.name}_' if self.wrapper.name else ''
        return PeriodSpread(f'{prefix}iter_{iteration}',
                            type(self.resampler.technique).__name__,
                            self.first, iteration, self.spread.layers(),
                            self.spread.histograms())


def write_period(period: PeriodSpread, folder: Path) -> list[Path]:
    """Write a period's tables and pictures.

    Args:
        period (PeriodSpread): What was recorded.
        folder (Path): Made if it is not there.

    Returns:
        List[Path]: The files.
    """
    # Here, because a training without this needs no matplotlib.
    from .figures import draw_histograms, draw_layers
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        write_csv(
            folder / f'{period.name}.csv',
            ('layer', 'shape', 'samples', 'rms', 'std', 'relative_std',
             'shift'),
            [(layer.name, 'x'.join(map(str, layer.shape)), layer.samples,
              layer.rms, layer.std, layer.relative_std, layer.shift)
             for layer in period.layers]),
        draw_layers(period.layers, folder / f'{period.name}.png',
                    period.title)
    ]
    if period.histograms:
        stem = f'{period.name}_histograms'
        files += [
            write_csv(
                folder / f'{stem}.csv', ('layer', 'from', 'to', 'density'),
                [(histogram.name, low, high, density)
                 for histogram in period.histograms for low, high, density in
                 zip(histogram.edges, histogram.edges[1:], histogram.density)
                 ]),
            draw_histograms(period.histograms, folder / f'{stem}.png',
                            period.title)
        ]
    return files


def _psw_wrappers(optim_wrapper: Any) -> list[PSWOptimWrapperMixin]:
    wrappers = (list(optim_wrapper.values()) if isinstance(
        optim_wrapper, OptimWrapperDict) else [optim_wrapper])
    found = [w for w in wrappers if isinstance(w, PSWOptimWrapperMixin)]
    if not found:
        raise ValueError(
            'WeightDistributionHook needs a PSWOptimWrapper, because it '
            'records the weights that this samples: add both lines to the '
            f'config.{HOW_TO_ENABLE}')
    return found


def _evenly(tensors: dict[str, Tensor], count: int) -> list[str]:
    """Names of the first, the last, and evenly many between, of the layers.

    Biases and norms are none.
    """
    names = [name for name, tensor in tensors.items() if tensor.ndim > 1]
    count = min(count, len(names))
    if count < 2:
        return names[:count]
    return [names[i * (len(names) - 1) // (count - 1)] for i in range(count)]

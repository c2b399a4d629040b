"""What is measured: ways to keep an average, and two flat passes."""
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from mmengine.model import ExponentialMovingAverage, StochasticWeightAverage
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmpsw.engine.peers import LatestWeightAverage
from mmpsw.methods.averaging import (
    PSWA,
    PSWM,
    PWALKS,
    PeriodicResampler,
    Technique,
)

__all__ = [
    'CONTROL', 'Contender', 'FLAT_COPY', 'FLAT_LERP', 'MissingError', 'OURS',
    'PEERS', 'SAMPLE', 'averaged_elements', 'flat_passes'
]

FLAT_LERP = 'flat lerp_'
FLAT_COPY = 'flat copy_'
SAMPLE = 'PSW sample'
CONTROL = 'PSW control, two swaps'


class MissingError(ValueError):
    """A peer's package is not installed."""


@dataclass
class Contender:
    """One call that is measured.

    Attributes:
        call (Callable): What is measured.
        prepare (Callable, optional): Comes before each call, unmeasured.
    """

    call: Callable[[], Any]
    prepare: Callable[[], Any] | None = None

    def run(self) -> None:
        """Once, unmeasured."""
        if self.prepare is not None:
            self.prepare()
        self.call()


def _resampler(model: nn.Module, technique: Technique, period: int,
               **keys: Any) -> PeriodicResampler:
    return PeriodicResampler(
        torch.optim.SGD(model.parameters(), lr=0.),
        technique,
        period,
        buffers=model.buffers(),
        **keys)


def _sample(**keys: Any) -> Callable[[nn.Module], Contender]:
    """A sample in the midst of a window that never ends."""

    def build(model: nn.Module) -> Contender:
        resampler = _resampler(model, PSWA(), 1 << 40, **keys)

        def sample() -> None:
            resampler.step()
            resampler.wait()

        return Contender(sample)

    return build


def _resampling(technique: Technique) -> Callable[[nn.Module], Contender]:
    """The last update of a period: a first sample (a copy), and the rest."""

    def build(model: nn.Module) -> Contender:
        resampler = _resampler(model, technique, 2)
        return Contender(resampler.step, prepare=resampler.step)

    return build


def _control(model: nn.Module) -> Contender:
    resampler = _resampler(model, PSWA(), 1, write_back=False)
    resampler.step()

    def swap() -> None:
        resampler.show_average()
        resampler.show_live()

    return Contender(swap)


def _torch(model: nn.Module) -> Contender:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn())
    return Contender(lambda: average.update_parameters(model))


def _mmengine(kind: type) -> Callable[[nn.Module], Contender]:

    def build(model: nn.Module) -> Contender:
        average = kind(model)
        return Contender(lambda: average.update_parameters(model))

    return build


def _lawa(model: nn.Module) -> Contender:
    average = LatestWeightAverage(model, last=10)
    return Contender(lambda: average.update_parameters(model))


def _timm(model: nn.Module) -> Contender:
    _require('timm')
    from timm.utils import ModelEmaV3
    average = ModelEmaV3(model)
    return Contender(lambda: average.update(model))


def _ema_pytorch(model: nn.Module) -> Contender:
    _require('ema_pytorch')
    from ema_pytorch import EMA
    average = EMA(model, update_after_step=0, update_every=1,
                  include_online_model=False, use_foreach=True)
    return Contender(average.update)


def _lightning(model: nn.Module) -> Contender:
    _require('lightning')
    from lightning.pytorch import LightningModule
    from lightning.pytorch.callbacks import EMAWeightAveraging

    class Wrapped(LightningModule):

        def __init__(self):
            super().__init__()
            self.model = model

    callback, wrapped = EMAWeightAveraging(), Wrapped()
    callback.setup(None, wrapped, 'fit')
    average = callback._average_model
    return Contender(lambda: average.update_parameters(wrapped))


PEERS: dict[str, Callable[[nn.Module], Contender]] = {
    'torch AveragedModel': _torch,
    'mmengine EMA': _mmengine(ExponentialMovingAverage),
    'mmengine SWA': _mmengine(StochasticWeightAverage),
    'timm ModelEmaV3': _timm,
    'ema-pytorch': _ema_pytorch,
    'Lightning EMA': _lightning,
    'LAWA, k = 10': _lawa,
}
OURS: dict[str, Callable[[nn.Module], Contender]] = {
    SAMPLE: _sample(),
    'PSW sample, offloaded': _sample(offload='cpu'),
    'PSWA copy + resampling': _resampling(PWALKS(last=1)),
    'PSWM copy + resampling': _resampling(PSWM(last=1)),
    CONTROL: _control,
}


def averaged_elements(model: nn.Module) -> int:
    """How many numbers a sample reads: weights, and floating buffers."""
    tensors = _resampler(model, PSWA(), 2).tensors
    return sum(tensor.numel() for tensor in tensors)


def flat_passes(elements: int, like: Tensor) -> dict[str, Contender]:
    """One tensor of so many elements: the practical limit."""
    mean, live = (
        torch.ones(elements, dtype=torch.float32, device=like.device)
        for _ in range(2))
    return {
        FLAT_LERP: Contender(lambda: mean.lerp_(live, 0.01)),
        FLAT_COPY: Contender(lambda: mean.copy_(live)),
    }


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise MissingError('not installed')

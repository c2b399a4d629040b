"""The spread of weights over samples, element by element (Welford, 1962)::

    n     <- n + 1
    delta  = w - mu
    mu    <- mu + delta / n
    S     <- S + delta * (w - mu)             # = delta^2 (n - 1) / n
    std    = sqrt(S / n)
"""
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ['Histogram', 'LayerSpread', 'Spread']

_EDGES = np.linspace(-4, 4, 42)


@dataclass(frozen=True)
class LayerSpread:
    """The spread of one parameter's elements.

    Attributes:
        name (str): The parameter's name.
        shape (Tuple[int]): Its shape.
        samples (int): Over how many samples.
        rms (float): Root mean square over the elements of mu.
        std (float): Mean over the elements of their standard deviation over
            the samples.
        shift (float): ``||mu - w|| / ||w||``, where w is the last sample.
    """

    name: str
    shape: tuple[int, ...]
    samples: int
    rms: float
    std: float
    shift: float

    @property
    def relative_std(self) -> float:
        """``std / rms``; nan for weights that are all zero."""
        return self.std / self.rms if self.rms else math.nan


@dataclass(frozen=True)
class Histogram:
    """Density of ``(w - mu) / std`` over elements and samples.

    Attributes:
        name (str): The parameter's name.
        edges (List[float]): The bins' edges; values beyond are left out.
        density (List[float]): One less.
    """

    name: str
    edges: list[float]
    density: list[float]


class Spread:
    """Running mean and standard deviation of some tensors, in fp64.

    Args:
        tensors (Dict[str, Tensor]): The first sample's tensors, for their
            names, shapes and devices; floating-point ones.
        traced (Sequence[str]): Of these, some elements' samples are all kept,
            for :meth:`histograms`.
        elements (int): How many elements of each. Defaults to 512, 4 KB for
            each sample.

    Attributes:
        samples (int): How many samples were taken (n).
        mean (List[Tensor]): mu, in the order of the tensors.
    """

    def __init__(self,
                 tensors: Mapping[str, Tensor],
                 traced: Sequence[str] = (),
                 elements: int = 512):
        self.names = list(tensors)
        self.samples = 0
        self.mean = [
            torch.zeros_like(t, dtype=torch.float64, requires_grad=False)
            for t in tensors.values()
        ]
        self._squares = [torch.zeros_like(mean) for mean in self.mean]
        self._last: list[Tensor] = []
        self._chosen = {
            name: _some_elements(tensors[name], elements)
            for name in traced
        }
        self._traces: dict[str, list[Tensor]] = {name: [] for name in traced}

    @torch.no_grad()
    def update(self, values: Sequence[Tensor]) -> None:
        """Take one sample; the values are copied."""
        wide = [value.to(torch.float64, copy=True) for value in values]
        self.samples += 1
        n = self.samples
        delta = torch._foreach_sub(wide, self.mean)
        torch._foreach_add_(self.mean, delta, alpha=1 / n)
        torch._foreach_addcmul_(self._squares, delta, delta, value=(n - 1) / n)
        self._last = wide
        for name, chosen in self._chosen.items():
            value = wide[self.names.index(name)].flatten()
            self._traces[name].append(value[chosen].cpu())

    def std(self) -> list[Tensor]:
        """Each element's standard deviation over the samples."""
        return [(squares / self.samples).sqrt() for squares in self._squares]

    def layers(self) -> list[LayerSpread]:
        """The summary of each tensor, in their order."""
        return [
            LayerSpread(name, tuple(mean.shape), self.samples,
                        mean.square().mean().sqrt().item(),
                        std.mean().item(), _relative(mean - last, last))
            for name, mean, std, last in zip(self.names, self.mean, self.std(),
                                             self._last)
        ]

    def histograms(self) -> list[Histogram]:
        """One for each traced tensor whose chosen elements moved at all."""
        found = []
        for name, trace in self._traces.items():
            values = torch.stack(trace).numpy()
            std = values.std(axis=0)
            moving = values[:, std > 0]
            if moving.size:
                standard = (moving - moving.mean(axis=0)) / std[std > 0]
                density, _ = np.histogram(standard, _EDGES, density=True)
                found.append(
                    Histogram(name, _EDGES.tolist(), density.tolist()))
        return found


def _relative(difference: Tensor, base: Tensor) -> float:
    size = torch.linalg.vector_norm(base).item()
    moved = torch.linalg.vector_norm(difference).item()
    return moved / size if size else math.nan


def _some_elements(tensor: Tensor, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(tensor.numel(), generator=generator)
    return order[:count].to(tensor.device)

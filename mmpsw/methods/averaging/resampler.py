"""Sampling after the updates, and the writing back."""
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .mean import RunningMean, accumulators, blend_, copy_
from .schedule import Schedule
from .settings import Settings, check_window
from .size import fits, squares
from .techniques import Technique
from .weights import Place, Weights, running_statistics

__all__ = ['PeriodicResampler', 'Resampling']


class Resampling(NamedTuple):
    """What a resampling did.

    Attributes:
        samples (int): How many samples the period's mean held (n).
        shift (float): ``||m - w|| / ||w||`` over all trainable parameters.
        applied (bool): False when m was dropped, because there was no sample
            or because it was not finite.
    """

    samples: int
    shift: float
    applied: bool = True


class PeriodicResampler:
    """Samples the weights after updates, and periodically writes them back.

    .. code-block:: python

        resampler = PeriodicResampler(
            optimizer, PSWA(), period=len(loader), model=model)
        ...
        loss.backward()
        optimizer.step()
        resampler.step()

    It averages the optimizer's trainable parameters (those that require a
    gradient when a window begins) and the model's running statistics of
    normalisation layers. All other buffers keep their live values. Between
    windows it computes nothing. :meth:`step` gives the live tensors new
    values; they stay the same objects.

    Parameters may be sharded by torch's ``fully_shard``: each process then
    averages its shards, and all decide alike. :meth:`state_dict` has the same
    entries at any time then, so that ``torch.distributed.checkpoint`` can
    load into it.

    Args:
        optimizer (Optimizer): Any ``torch.optim`` optimizer.
        technique (PSWA, PWALKS or PSWM): What is written back.
        period (int): Length of a period, in calls of :meth:`step`.
        model (nn.Module, optional): Whose running statistics are averaged
            with the weights, and which names them. Without one, only the
            parameters are averaged, by numbers.
        total (int, optional): Calls of the whole run. The last period is cut
            to it, so that the run ends with a resampling.
        accumulation (int): See :class:`Schedule`; 1 where every call of
            :meth:`step` follows an update. Defaults to 1.
        names (Mapping[Tensor, str], optional): Other names for parameters
            than the model's.
        statistics (Mapping[str, Tuple[nn.Module, str]], optional): Other
            running statistics than all of the model's; see
            :func:`running_statistics`.
        reduce_statistics (Callable, optional): Called at the end of a period
            with the list of the statistics' means, to be made equal over all
            processes in place.
        warn (Callable): Told of periods that are dropped. Defaults to
            ``warnings.warn``.
        **settings: The others of :class:`Settings`: ``begin``, ``end``,
            ``weighting``, ``sample_prob``, ``seed``, ``write_back`` and
            ``evaluate``.

    Raises:
        ValueError: A setting is out of its range, nothing can be averaged, or
            a parameter cannot be.
    """

    def __init__(self,
                 optimizer: Optimizer,
                 technique: Technique,
                 period: int,
                 *,
                 model: nn.Module | None = None,
                 total: int | None = None,
                 accumulation: int = 1,
                 names: Mapping[Tensor, str] | None = None,
                 statistics: Mapping[str, Place] | None = None,
                 reduce_statistics: Callable | None = None,
                 warn: Callable[[str], None] = warnings.warn,
                 **settings: Any):
        self.settings = Settings(technique, period, **settings)
        self.schedule = Schedule(period, self.settings.begin,
                                 self.settings.end, accumulation, total)
        check_window(technique, self.schedule)
        if model is not None:
            names = names or {p: n for n, p in model.named_parameters()}
            if statistics is None:
                statistics = running_statistics(model)
        self.weights = Weights(optimizer, names or {}, statistics or {})
        self.generator = torch.Generator().manual_seed(self.settings.seed)
        self.reduce_statistics = reduce_statistics
        self.warn = warn

        self.iteration = 0
        self.resamplings = 0
        self._running = RunningMean(self.settings.weighting)
        self._previous: list[Tensor] | None = None
        self._live: list[Tensor] | None = None

    @property
    def technique(self) -> Technique:
        """What is written back."""
        return self.settings.technique

    @property
    def samples(self) -> int:
        """How many samples the period that is under way holds."""
        return self._running.samples

    @property
    def tensors(self) -> list[Tensor]:
        """The live tensors that are averaged: parameters, then statistics."""
        return self.weights.tensors()

    @property
    def live(self) -> list[Tensor]:
        """The values of :attr:`tensors`, also inside of :meth:`averaged`."""
        return self._live or self.tensors

    @property
    def statistics(self) -> list[Tensor]:
        """The live running statistics among :attr:`tensors`."""
        return self._statistics(self.tensors)

    @property
    def shows(self) -> str | None:
        """Which part of its state :meth:`averaged` shows; see ``evaluate``.

        None is for the live weights.
        """
        if self.settings.evaluate == 'average' and self.samples:
            return 'mean'
        if self.settings.write_back or self._previous is None:
            return None
        return 'previous'

    @property
    def average(self) -> list[Tensor] | None:
        """What :meth:`averaged` shows, for each of :attr:`tensors`."""
        return {'mean': self._running.mean,
                'previous': self._previous}.get(self.shows)

    def in_window(self, iteration: int) -> bool:
        """Whether an update in this iteration, from 1, may be sampled."""
        place = self.schedule.locate(iteration)
        return place is not None and (
            place.update > place.updates
            - self.technique.window(place.updates))

    def step(self,
             iteration: int | None = None,
             updated: bool = True) -> Resampling | None:
        """Call this once after every ``optimizer.step()``.

        Args:
            iteration (int, optional): The number of this iteration, from 1.
                None counts the calls.
            updated (bool): False when the update did not happen (a gradient
                scaler skipped it, or gradients are accumulated): then there
                is nothing to sample.

        Returns:
            Resampling or None: What was done, where a period ends.

        Raises:
            ValueError: The average is in the model, not the live weights.
        """
        if self._live is not None:
            raise ValueError(
                'The weights cannot be sampled inside of averaged(), because '
                'the average is in the model, and not the live weights: '
                'train outside of it.')
        self.iteration = (
            self.iteration + 1 if iteration is None else iteration)
        place = self.schedule.locate(self.iteration)
        if place is None:
            self._end()
            return None
        if updated and self.in_window(self.iteration) and self._drawn():
            self._sample()
        return self._resample() if place.ends else None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The average in the model, inside this context; see ``evaluate``.

        The live weights are back afterwards, whatever happens inside. Where
        there is no average (yet), they stay in the model.
        """
        try:
            self.show_average()
            yield
        finally:
            self.show_live()

    @torch.no_grad()
    def show_average(self) -> None:
        """Put the average into the model, until :meth:`show_live`."""
        if self.average is not None and self._live is None:
            tensors = self.tensors
            live = self._running.spare(tensors)
            copy_(live, tensors)
            self._live = live  # whole: an interruption puts it back
            copy_(tensors, self.average)

    def show_live(self) -> None:
        """Put the live weights back into the model."""
        if self._live is not None:
            copy_(self.tensors, self._live)
            self._live = None

    def forget(self) -> None:
        """Drop the average and the samples so far, as other weights were
        loaded: until a period ends, there is nothing to show."""
        self._running.restart()
        self._live = None
        self._forget()

    def take_statistics(self) -> None:
        """With ``write_back=False``: those in the model become those of m."""
        if not self.settings.write_back and self._previous:
            copy_(self._statistics(self._previous), self.statistics)

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs, as tensors and plain numbers.

        The tensors are references, as those of an optimizer's state are.
        """
        parts = {}
        for name, part, needed in (
                ('mean', self._running.mean, self.samples),
                ('previous', self._previous, self._previous is not None)):
            if needed or self.weights.sharded:
                parts[name] = self.weights.named(part or [
                    torch.zeros_like(t) for t in accumulators(self.tensors)])
        return dict(
            iteration=self.iteration,
            resamplings=self.resamplings,
            samples=self.samples,
            generator=self.generator.get_state(),
            parameters=self.weights.count,
            **parts)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`, inside of a period too.

        Raises:
            ValueError: The state is of other parameters or statistics, or
                lacks a mean of the samples that it counts.
        """
        if state['parameters'] != self.weights.count:
            raise ValueError(
                'The saved averaging does not fit this model, because the '
                f'optimizer had {state["parameters"]} parameters, and has '
                f'{self.weights.count}: resume with the model and the '
                'optimizer that were saved, or start from the weights alone.')
        needed = {'mean': state['samples'],
                  'previous': state['resamplings']}
        parts = {name: state[name] for name in needed
                 if needed[name] and name in state}
        if state['samples'] and 'mean' not in parts:
            raise ValueError(
                f'The saved averaging holds {state["samples"]} samples but no '
                'mean, because it was loaded in part: load all of it, or '
                'start from the weights alone.')
        parts = self.weights.load(parts)
        self._running = RunningMean(self.settings.weighting)
        self._running.samples = state['samples']
        self._running.mean = parts.get('mean')
        self._previous = parts.get('previous')
        self.iteration = state['iteration']
        self.resamplings = state['resamplings']
        self.generator.set_state(state['generator'].cpu())

    def _drawn(self) -> bool:
        if self.settings.sample_prob == 1:
            return True
        draw = torch.rand(
            (), generator=self.generator, dtype=torch.float64, device='cpu')
        return draw.item() < self.settings.sample_prob

    def _sample(self) -> None:
        if not self.samples and self.weights.follow():
            # Parameters were frozen, unfrozen or added.
            self._running = RunningMean(self.settings.weighting)
            if self._previous is not None:
                self.warn('The trainable parameters are others than in the '
                          'last period: the average of the past periods '
                          'starts anew.')
                self._forget()
        if self.weights.params:
            self._running.update(self.tensors)

    def _forget(self) -> None:
        self._previous = None
        self.resamplings = 0

    def _end(self) -> None:
        """After the last period, its average is of older and older weights."""
        end = self.settings.end
        if end is not None and self.iteration > end and self.average:
            self.warn(f'The last period ended with iteration {end}: from now '
                      'on the live weights are evaluated and saved.')
            self._running.restart()
            self._previous = None

    @torch.no_grad()
    def _resample(self) -> Resampling:
        samples, mean = self.samples, self._running.mean
        if not samples:
            return self._drop(0, 'no update of its window was sampled (with '
                              f'sample_prob={self.settings.sample_prob}, and '
                              'without those that a gradient scaler skipped, '
                              'or in which nothing was trainable)')
        self._running.restart()
        if self.reduce_statistics is not None and self._statistics(mean):
            self.reduce_statistics(self._statistics(mean))
        tensors = self.tensors
        if not self._finite(mean, tensors):
            return self._drop(samples, 'its mean is not finite')
        m = self._statistic(mean, samples)
        # Their difference may overflow, and a dtype may become narrower.
        if m is not mean and not self._finite(m, tensors):
            self._forget()
            return self._drop(samples, 'its blend with the past periods, '
                              'which is forgotten now, is not finite')
        self.resamplings += 1
        shift = self._shift(m, tensors)
        if self.settings.write_back:
            copy_(tensors, m)
        return Resampling(samples, shift)

    def _statistic(self, mean: list[Tensor], samples: int) -> list[Tensor]:
        """``m = beta * m_prev + (1 - beta) * mu``."""
        if self.settings.write_back and not self.technique.keeps_previous:
            return mean
        beta = self.technique.beta(samples, self.resamplings)
        if self._previous is None or beta == 0:
            self._previous = self._previous or accumulators(mean)
            copy_(self._previous, mean)
        else:
            blend_(self._previous, mean, 1 - beta)
        return self._previous

    def _finite(self, mean: list[Tensor], tensors: list[Tensor]) -> bool:
        """Whether all parameters' means are; statistics are mended.

        One whose mean is not finite keeps its live value.
        """
        finite = fits(mean, tensors)
        params = len(self.weights.params)
        for i in range(params, len(mean)):
            if not finite[i]:
                mean[i].copy_(tensors[i])
        missing = [float(not one) for one in finite[:params]]
        return not any(self.weights.reduced(missing, 'MAX'))

    def _shift(self, m: list[Tensor], tensors: list[Tensor]) -> float:
        """NaN where all of w is zero."""
        params = len(self.weights.params)
        moved, size = (
            sum(self.weights.reduced(numbers, 'SUM'))
            for numbers in squares(m[:params], tensors[:params]))
        return math.sqrt(moved / size) if size else math.nan

    def _drop(self, samples: int, reason: str) -> Resampling:
        self.warn(f'The weights are not resampled at iteration '
                  f'{self.iteration}, because {reason}: the live weights '
                  'stay, and the next period begins.')
        return Resampling(samples, math.nan, False)

    def _statistics(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors[len(self.weights.params):]

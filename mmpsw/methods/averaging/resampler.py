"""What is averaged, and the writing back."""
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import state as states
from .checks import (
    check_options,
    check_parameter,
    check_window,
    check_write_back,
)
from .mean import (
    ACCUMULATED_IN,
    LAG,
    RunningMean,
    accumulators,
    blend_,
    copy_,
)
from .schedule import Schedule
from .size import fits, shift
from .techniques import Technique

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
            optimizer, PSWA(), period=len(loader), buffers=model.buffers())
        ...
        loss.backward()
        optimizer.step()
        resampler.step()

    Averaged are the optimizer's trainable parameters (those that require a
    gradient when a window begins) and the floating-point buffers; integer
    buffers keep their live values. Between windows nothing is computed, and
    after :meth:`step` returned the live tensors are the same objects as
    before, with new values.

    Args:
        optimizer (Optimizer): Any ``torch.optim`` optimizer.
        technique (PSWA, PWALKS or PSWM): What is written back.
        period (int): Length of a period, in calls of :meth:`step`.
        begin (int): Calls before the first period. Defaults to 0.
        end (int, optional): The call with which the last period ends.
        total (int, optional): Calls of the whole run. The last period is cut
            to it, so that the run ends with a resampling.
        accumulation (int): See :class:`Schedule`; 1 where every call of
            :meth:`step` follows an update. Defaults to 1.
        sample_prob (float): The probability q in (0, 1] with which an update
            in the window is sampled. Defaults to 1.
        seed (int): Seed of the generator that draws; it is the resampler's
            own, and saved. Defaults to 0.
        buffers (Iterable[Tensor]): Buffers to be averaged with the weights;
            leave out the unit vectors of a spectral norm.
        optimizer_state (str): 'keep', or 'reset' to return the optimizer's
            state (momentum, moments) to its initial one when the weights are
            written back. Defaults to 'keep'.
        write_back (bool): False leaves the live weights alone; m is what
            :meth:`averaged` shows. Defaults to True.
        weighting (str): 'uniform', or 'linear': later samples count more,
            ``mu <- mu + (w - mu) 2 / (n + 1)``. Defaults to 'uniform'.
        evaluate (str): What :meth:`averaged` shows: 'resampled', m with
            ``write_back=False`` and else the live weights; or 'average', the
            running mean of the period so far, and after its end mu. Defaults
            to 'resampled'.
        names (Dict[Tensor, str], optional): Names for messages.
        reduce_buffers (Callable, optional): Called at the end of a period
            with the list of the buffers' means, to be made equal over all
            processes in place.
        warn (Callable): Told of periods that are dropped. Defaults to
            ``warnings.warn``.

    Raises:
        ValueError: An option is out of its range, nothing can be averaged, or
            a parameter cannot be.
    """

    def __init__(self,
                 optimizer: Optimizer,
                 technique: Technique,
                 period: int,
                 *,
                 begin: int = 0,
                 end: int | None = None,
                 total: int | None = None,
                 accumulation: int = 1,
                 sample_prob: float = 1.0,
                 seed: int = 0,
                 buffers: Iterable[Tensor] = (),
                 optimizer_state: str = 'keep',
                 write_back: bool = True,
                 weighting: str = 'uniform',
                 evaluate: str = 'resampled',
                 names: dict[Tensor, str] | None = None,
                 reduce_buffers: Callable | None = None,
                 warn: Callable[[str], None] = warnings.warn):
        check_options(sample_prob, seed, optimizer_state, write_back,
                      weighting, evaluate)
        check_write_back(technique, write_back)
        self.optimizer = optimizer
        self.technique = technique
        self.schedule = Schedule(period, begin, end, accumulation, total)
        check_window(technique, self.schedule)
        self.sample_prob = sample_prob
        self.generator = torch.Generator().manual_seed(seed)
        self.buffers = _floating(buffers)
        self.write_back = write_back
        self.weighting = weighting
        self.evaluate = evaluate
        self.names = names or {}
        self.reduce_buffers = reduce_buffers
        self.warn = warn
        self._fresh_state = (
            _copied(optimizer.state) if optimizer_state == 'reset' else None)

        self.iteration = 0
        self.resamplings = 0
        self.newest: Resampling | None = None
        self._running = self._mean_of(self._trainable() + self.buffers)
        self._previous: list[Tensor] | None = None
        self._live: list[Tensor] | None = None

    @property
    def samples(self) -> int:
        """How many samples the period that is under way holds."""
        return self._running.samples

    @property
    def tensors(self) -> list[Tensor]:
        """The live tensors that are averaged: parameters, then buffers."""
        return self._running.tensors

    @property
    def average(self) -> list[Tensor] | None:
        """What :meth:`averaged` shows, for each of :attr:`tensors`, or None.

        None is for the live weights. See ``evaluate``.
        """
        if self.evaluate == 'average' and self.samples:
            return self._running.mean
        if self.evaluate == 'average' and self.technique.looks_ahead:
            return self._previous
        return None if self.write_back else self._previous

    def step(self,
             iteration: int | None = None,
             updated: bool = True) -> Resampling | None:
        """Tell that an optimizer update is due now.

        Args:
            iteration (int, optional): The number of this iteration, from 1.
                None counts the calls.
            updated (bool): False when the update did not happen (a gradient
                scaler skipped it): then there is nothing to sample.

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
            return None
        window = self.technique.window(place.updates)
        if place.update > place.updates - window:
            if self._drawn() and updated:
                self._sample()
        return self._resample() if place.update == place.updates else None

    def finish(self) -> Resampling | None:
        """End the period that is under way, where it has samples.

        For a run whose end nobody knew before, and so no ``total``.
        """
        return self._resample() if self.samples else None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The average in the model, inside this context; see ``evaluate``.

        The live weights are back afterwards, whatever happens inside. Where
        there is no average (yet), they stay in the model.
        """
        self.show_average()
        try:
            yield
        finally:
            self.show_live()

    @torch.no_grad()
    def show_average(self) -> None:
        """Put the average into the model, until :meth:`show_live`."""
        if self.average is not None and self._live is None:
            # Between windows the running mean's memory is free.
            free = None if self.samples else self._running.mean
            self._live = free or accumulators(self.tensors)
            copy_(self._live, self.tensors)
            copy_(self.tensors, self.average)

    def show_live(self) -> None:
        """Put the live weights back into the model."""
        if self._live is not None:
            copy_(self.tensors, self._live)
            self._live = None

    def take_buffers(self) -> None:
        """With ``write_back=False``: the model's buffers become those of m."""
        if not self.write_back and self._previous and self.buffers:
            copy_(self._previous[-len(self.buffers):], self.buffers)

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs, as tensors and plain numbers.

        The tensors are references, as those of an optimizer's state are.
        """
        parts = {}
        if self.samples:
            parts['mean'] = self._running.mean
        if self._previous is not None:
            parts['previous'] = self._previous
        if self.average is not None:
            parts['live'] = self._live or self.tensors
        return dict(
            iteration=self.iteration,
            resamplings=self.resamplings,
            samples=self.samples,
            generator=self.generator.get_state(),
            parameters=len(self._parameters()),
            **states.encode(parts, self.tensors, self._keyed()))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, in the middle of a period as well.

        The live weights are loaded too, where a checkpoint deploys the
        average. Averaged are the parameters that
        were when the state was saved, whatever is frozen now: what is frozen
        and unfrozen during a run comes to its place after the loading.

        Raises:
            ValueError: The state is of other parameters or buffers.
        """
        states.check_count(state, len(self._parameters()))
        averaged = self._trainable() + self.buffers
        live, parts = states.decode(state, averaged, self._keyed())
        self._running = self._mean_of(live)
        self._running.samples = state['samples']
        self._running.mean = parts.get('mean')
        self._previous = parts.get('previous')
        if 'live' in parts:
            copy_(self.tensors, parts['live'])
        self.iteration = state['iteration']
        self.resamplings = state['resamplings']
        self.generator.set_state(state['generator'].cpu())

    def _trainable(self) -> list[Tensor]:
        """The parameters to be averaged, checked."""
        trainable = [
            param for param in self._parameters() if param.requires_grad
        ]
        if not trainable:
            raise ValueError(
                'There is nothing to average, because the optimizer has no '
                'parameter that requires a gradient: unfreeze some, or train '
                'without averaging.')
        for index, param in enumerate(trainable):
            check_parameter(param, self.names.get(param, f'number {index}'))
        return trainable

    def _parameters(self) -> list[Tensor]:
        return [
            param for group in self.optimizer.param_groups
            for param in group['params']
        ]

    def _keyed(self) -> dict[str, Tensor]:
        """All that can be averaged, under keys that survive a restart."""
        return {
            **{f'param.{i}': p for i, p in enumerate(self._parameters())},
            **{f'buffer.{i}': b for i, b in enumerate(self.buffers)},
        }

    def _mean_of(self, tensors: list[Tensor]) -> RunningMean:
        return RunningMean(tensors, self.weighting)

    def _drawn(self) -> bool:
        if self.sample_prob == 1:
            return True
        draw = torch.rand(
            (), generator=self.generator, dtype=torch.float64, device='cpu')
        return draw.item() < self.sample_prob

    def _sample(self) -> None:
        if not self._running.samples:
            self._follow_trainable()
        self._running.update()

    def _follow_trainable(self) -> None:
        """Follow parameters that were frozen, unfrozen or added."""
        now = self._trainable() + self.buffers
        if list(map(id, now)) == list(map(id, self.tensors)):
            return
        self._running = self._mean_of(now)
        if self._previous is not None:
            self.warn('The trainable parameters are others than in the last '
                      'period: the average of the past periods starts anew.')
            self._forget()

    def _forget(self) -> None:
        self._previous = None
        self.resamplings = 0

    @torch.no_grad()
    def _resample(self) -> Resampling:
        self.newest = self._resampled()
        return self.newest

    def _resampled(self) -> Resampling:
        samples, mean = self.samples, self._running.mean
        if not samples:
            return self._drop(0, 'no update of its window was sampled (with '
                              f'sample_prob={self.sample_prob}, and without '
                              'those that a gradient scaler skipped)')
        self._running.restart()
        if self.reduce_buffers is not None and self.buffers:
            self.reduce_buffers(mean[-len(self.buffers):])
        if not self._finite(mean):
            return self._drop(samples, 'its mean is not finite')
        m = self._statistic(mean, samples)
        # Their difference may overflow, and a dtype may become narrower.
        if m is not mean and not self._finite(m):
            self._forget()
            return self._drop(samples, 'its blend with the past periods, '
                              'which is forgotten now, is not finite')
        self.resamplings += 1
        moved = shift(self._trained(m), self._trained(self.tensors))
        if self.write_back:
            copy_(self.tensors, m)
            if self._fresh_state is not None:
                self.optimizer.state.clear()
                self.optimizer.state.update(_copied(self._fresh_state))
        return Resampling(samples, moved)

    def _statistic(self, mean: list[Tensor], samples: int) -> list[Tensor]:
        """``m = beta * m_prev + (1 - beta) * mu``."""
        if self.write_back and not self.technique.keeps_previous:
            return mean
        beta = self.technique.beta(samples, self.resamplings, self._lag())
        if self._previous is None or beta == 0:
            self._previous = self._previous or accumulators(self.tensors)
            copy_(self._previous, mean)
            return self._previous
        m = self._previous
        if self.technique.looks_ahead:
            # Only weights go beyond the mean, and the mean is what is kept:
            # m is in the memory where the next one will be.
            copy_(m[len(self._trained(m)):], mean[len(self._trained(m)):])
            blend_(self._trained(m), self._trained(mean), 1 - beta)
            self._previous, self._running.mean = mean, m
        else:
            blend_(m, mean, 1 - beta)
        return m

    def _lag(self) -> float:
        """How far the mean lies behind the period's end, in periods."""
        update, updates = self.schedule.locate(self.iteration)
        window = self.technique.window(updates) - (updates - update)
        return LAG[self.weighting] * (window - 1) / updates

    def _finite(self, mean: list[Tensor]) -> bool:
        """Whether all parameters' means are; buffers are mended.

        A buffer whose mean is not finite keeps its live value: observers
        start at inf and masks hold -inf, and their mean is NaN although
        nothing is wrong with them.
        """
        finite = fits(mean, self.tensors)
        params = len(mean) - len(self.buffers)
        for i, buffer in enumerate(self.buffers, start=params):
            if not finite[i]:
                mean[i].copy_(buffer)
        return all(finite[:params])

    def _drop(self, samples: int, reason: str) -> Resampling:
        self.warn(f'The weights are not resampled at iteration '
                  f'{self.iteration}, because {reason}: the live weights '
                  'stay, and training goes on with the next period.')
        return Resampling(samples, math.nan, False)

    def _trained(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors[:len(tensors) - len(self.buffers)]


def _floating(buffers: Iterable[Tensor]) -> list[Tensor]:
    unique = {id(buffer): buffer for buffer in buffers}
    return [
        buffer for buffer in unique.values()
        if buffer.dtype in ACCUMULATED_IN and buffer.layout == torch.strided
    ]


def _copied(state: dict[Any, Any]) -> dict[Any, Any]:
    return {
        param: {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in entries.items()
        }
        for param, entries in state.items()
    }

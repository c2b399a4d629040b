"""What is averaged, and the writing back."""
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import (
    Any,
    NamedTuple,
)

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from .mean import ACCUMULATED_IN, RunningMean, blend_, copy_
from .pieces import batches
from .schedule import Schedule
from .techniques import Technique

__all__ = ['PeriodicResampler', 'Resampling', 'check_options']


class Resampling(NamedTuple):
    """What a resampling did.

    Attributes:
        samples (int): How many samples the period's mean held (n).
        shift (float): ``||m - w|| / ||w||`` over all trainable parameters.
        applied (bool): False when m was dropped, because there was no sample
            or because it was not finite; ``reason`` says why.
        reason (str): Empty when applied.
    """

    samples: int
    shift: float
    applied: bool = True
    reason: str = ''


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
        total (int, optional): Calls of the whole training. The last period is
            cut to it, so that the training ends with a resampling.
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
        offload (str, optional): 'cpu' keeps the parameters' means, and m, in
            pinned host memory: two buffers of 16 MiB each are left of them
            on a GPU. The values are the same; a sample takes the time in
            which 8 bytes a parameter go over the bus, beside the next forward
            and backward pass. Where the parameters are on a CPU it only costs
            time. Defaults to None.
        block (int, optional): Average blocks of so many samples, and blocks
            of these blocks, as rounding errors grow with the number of
            samples (see ``averaging/mean.py``): 128 keeps 1e5 samples within
            1e-5 of float64, and costs one more copy of the weights for each
            level. Defaults to None, a single level.
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
                 offload: str | None = None,
                 block: int | None = None,
                 names: dict[Tensor, str] | None = None,
                 reduce_buffers: Callable | None = None,
                 warn: Callable[[str], None] = warnings.warn):
        check_options(sample_prob, seed, optimizer_state, write_back, offload,
                      block)
        self.optimizer = optimizer
        self.technique = technique
        self.schedule = Schedule(period, begin, end, accumulation, total)
        self._check_last()
        self.sample_prob = sample_prob
        self.generator = torch.Generator().manual_seed(seed)
        self.buffers = _floating(buffers)
        self.write_back = write_back
        self.offload = offload
        self.block = block
        self.names = names or {}
        self.reduce_buffers = reduce_buffers
        self.warn = warn
        self._fresh_state = None
        if optimizer_state == 'reset':
            self._fresh_state = _copied(optimizer.state)

        self.iteration = 0
        self.resamplings = 0
        self.newest: Resampling | None = None
        self._running = self._running_mean(self._trainable())
        self._previous: list[Tensor] | None = None
        self._live: list[Tensor] | None = None
        if offload:
            optimizer.register_step_pre_hook(lambda *_: self.wait())

    @property
    def samples(self) -> int:
        """How many samples the period that is under way holds."""
        return self._running.samples

    @property
    def tensors(self) -> list[Tensor]:
        """The live tensors that are averaged: parameters, then buffers."""
        return self._running.tensors

    @property
    def mean(self) -> list[Tensor] | None:
        """A copy of the mean so far, for each of :attr:`tensors`, or None.

        None between windows.
        """
        return self._running.so_far() if self.samples else None

    @property
    def average(self) -> list[Tensor] | None:
        """With ``write_back=False``: m for each of :attr:`tensors`, or None.

        None before the first period's end, and with ``write_back=True``.
        """
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
        if place.update < place.updates:
            return None
        self.newest = self._resample()
        return self.newest

    def wait(self) -> None:
        """With ``offload``: what changes the weights comes after this.

        The device's work that is queued from now on begins after the newest
        sample was taken. ``optimizer.step`` does it itself.
        """
        self._running.wait()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """With ``write_back=False``: m in the model, inside this context.

        The live weights are back afterwards, whatever happens inside. Before
        the first period's end, and with ``write_back=True``, the live weights
        stay in the model.
        """
        self.show_average()
        try:
            yield
        finally:
            self.show_live()

    @torch.no_grad()
    def show_average(self) -> None:
        """Put m into the model, until :meth:`show_live`."""
        self._running.finish()
        if self.average is not None and self._live is None:
            # Between windows the running mean's memory is free.
            self._live = (
                self._running.accumulators()
                if self.samples else self._running.allocate())
            copy_(self._live, self.tensors)
            copy_(self.tensors, self.average)

    def show_live(self) -> None:
        """Put the live weights back into the model."""
        if self._live is not None:
            copy_(self.tensors, self._live)
            self._live = None

    def take_buffers(self) -> None:
        """Make the buffers that are in the model those of the average."""
        if self.average is not None and self.buffers:
            copy_(self.average[-len(self.buffers):], self.buffers)

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs, as tensors and plain numbers.

        The tensors are references, as those of an optimizer's state are.
        """
        self._running.finish()
        state = dict(
            iteration=self.iteration,
            resamplings=self.resamplings,
            samples=self.samples,
            generator=self.generator.get_state(),
            parameters=len(self._parameters()))
        for level, _ in enumerate(self._running.levels()):
            state[_mean_at(level)] = self._numbered(
                self._running.blocks[level - 1] if level else
                self._running.mean)
        if self._previous is not None:
            state['previous'] = self._numbered(self._previous)
        if self.average is not None:
            state['live'] = self._numbered(self._live or self.tensors)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, in the middle of a period as well.

        With ``write_back=False`` the live weights are loaded too: what a
        checkpoint deploys is the average. Averaged are the parameters that
        were when the state was saved, whatever is frozen now: what is frozen
        and unfrozen during a training comes to its place after the loading.

        Raises:
            ValueError: The state is of other parameters or buffers.
        """
        live = self._tensors_of(state)
        self._running.finish()
        params = self._trained(list(live.values()))
        self._running = self._running_mean(params)
        self._running.samples = state['samples']

        def loaded(part: str) -> list[Tensor]:
            means = self._running.accumulators()
            copy_(means, [state[part][key] for key in live])
            return means

        levels = range(len(self._running.levels()))
        if ({_mean_at(level) for level in levels} !=
            {part for part in state if part == 'mean' or _is_block(part)}):
            raise ValueError(_does_not_fit(
                'mean', f'it was not averaged with block={self.block}'))
        if levels:
            self._running.mean, *self._running.blocks = [
                loaded(_mean_at(level)) for level in levels
            ]
        self._previous = loaded('previous') if 'previous' in state else None
        if 'live' in state:
            copy_(self.tensors, loaded('live'))
        self.iteration = state['iteration']
        self.resamplings = state['resamplings']
        self.generator.set_state(state['generator'].cpu())

    def _running_mean(self, params: list[Tensor]) -> RunningMean:
        return RunningMean(params + self.buffers,
                           len(params) if self.offload else 0, self.block)

    def _trainable(self) -> list[Tensor]:
        """The parameters to be averaged, checked."""
        trainable = [
            param for param in self._parameters() if param.requires_grad
        ]
        if not trainable:
            raise ValueError(
                'There is nothing to average, because the optimizer has no '
                'parameter that requires a gradient: unfreeze some, or train '
                'without psw.')
        for index, param in enumerate(trainable):
            _check_parameter(param, self.names.get(param, f'number {index}'))
        return trainable

    def _parameters(self) -> list[Tensor]:
        return [
            param for group in self.optimizer.param_groups
            for param in group['params']
        ]

    def _check_last(self) -> None:
        last = getattr(self.technique, 'last', None)
        updates = self.schedule.period // self.schedule.accumulation
        if isinstance(last, int) and last > updates:
            raise ValueError(
                f'psw.last={last} is longer than the period, which holds '
                f'{updates} updates: use at most {updates}, a fraction in '
                '(0, 1], or a longer period.')

    def _drawn(self) -> bool:
        if self.sample_prob == 1:
            return True
        draw = torch.rand((), generator=self.generator, dtype=torch.float64)
        return draw.item() < self.sample_prob

    def _sample(self) -> None:
        if not self._running.samples:
            self._begin_window()
        self._running.update()

    def _begin_window(self) -> None:
        """Follow parameters that were frozen, unfrozen or added."""
        running = self._running_mean(self._trainable())
        if list(map(id, running.tensors)) == list(map(id, self.tensors)):
            return
        self._running = running
        if self._previous is not None:
            self.warn('The trainable parameters are others than in the last '
                      'period: the average of the past periods starts anew.')
            self._previous = None
            self.resamplings = 0

    @torch.no_grad()
    def _resample(self) -> Resampling:
        samples = self.samples
        if not samples:
            return self._drop(0, 'no update of its window was sampled (with '
                              f'psw.sample_prob={self.sample_prob}, and '
                              'without those that a gradient scaler skipped)')
        mean = self._running.complete()
        if self.reduce_buffers is not None and self.buffers:
            self.reduce_buffers(mean[-len(self.buffers):])
        if not self._finite(mean):
            return self._drop(samples, 'its mean is not finite')
        m = self._statistic(mean, samples)
        # Their difference may overflow, and a dtype may become narrower.
        if m is not mean and not self._finite(m):
            self._previous = None
            self.resamplings = 0
            return self._drop(samples, 'its blend with the past periods, '
                              'which is forgotten now, is not finite')
        self.resamplings += 1
        shift = _shift(self._trained(m), self._trained(self.tensors))
        if self.write_back:
            copy_(self.tensors, m)
            self._reset_optimizer()
        return Resampling(samples, shift)

    def _statistic(self, mean: list[Tensor], samples: int) -> list[Tensor]:
        """``m = beta * m_prev + (1 - beta) * mu``."""
        if self.write_back and not self.technique.keeps_previous:
            return mean
        if self._previous is None:
            self._previous = self._running.accumulators()
            beta = 0.0
        else:
            beta = self.technique.beta(samples, self.resamplings)
        if beta == 0:
            copy_(self._previous, mean)
        else:
            blend_(self._previous, mean, 1 - beta)
        return self._previous

    def _finite(self, mean: list[Tensor]) -> bool:
        """Whether all parameters' means are; buffers are mended.

        A buffer whose mean is not finite keeps its live value: observers
        start at inf and masks hold -inf, and their mean is NaN although
        nothing is wrong with them.
        """
        finite = [
            _fits(*each) for each in zip(mean, *_norms(mean), self.tensors)
        ]
        params = len(mean) - len(self.buffers)
        for i, buffer in enumerate(self.buffers, start=params):
            if not finite[i]:
                mean[i].copy_(buffer)
        return all(finite[:params])

    def _drop(self, samples: int, reason: str) -> Resampling:
        self.warn(f'The weights are not resampled at iteration '
                  f'{self.iteration}, because {reason}: the '
                  'live weights stay, and training goes on with the next '
                  'period.')
        return Resampling(samples, math.nan, False, reason)

    def _trained(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors[:len(tensors) - len(self.buffers)]

    def _reset_optimizer(self) -> None:
        if self._fresh_state is not None:
            self.optimizer.state.clear()
            self.optimizer.state.update(_copied(self._fresh_state))

    def _numbered(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Under keys that survive a restart.

        What has left the optimizer since the window began has none.
        """
        keys = _inverse(self._keyed())
        return {
            keys[id(live)]: tensor
            for live, tensor in zip(self.tensors, tensors) if id(live) in keys
        }

    def _keyed(self) -> dict[str, Tensor]:
        """All that can be averaged, with what is frozen now."""
        return {
            **{f'param.{i}': p for i, p in enumerate(self._parameters())},
            **{f'buffer.{i}': b for i, b in enumerate(self.buffers)},
        }

    def _tensors_of(self, state: dict[str, Any]) -> dict[str, Tensor]:
        """The live tensors that a state is of, checked."""
        known = self._keyed()
        parts = [part for part in state if part in _PARTS or _is_block(part)]
        if parts:
            keys = list(state[parts[0]])
        else:
            name = _inverse(known)
            keys = [name[id(p)] for p in self._trainable() + self.buffers]
        buffers = [key for key in known if key.startswith('buffer.')]
        for part in parts:
            _check_fit(part, state[part], known, [*keys, *buffers])
        count = len(self._parameters())
        if state.get('parameters', count) != count:
            raise ValueError(_does_not_fit(
                'state', f'the optimizer had {state["parameters"]} '
                f'parameters, and has {count}'))
        return {key: known[key] for key in keys}


_PARTS = ('mean', 'previous', 'live')


def _mean_at(level: int) -> str:
    return f'blocks.{level}' if level else 'mean'


def _is_block(part: str) -> bool:
    return part.startswith('blocks.')


def _inverse(tensors: dict[str, Tensor]) -> dict[int, str]:
    return {id(tensor): key for key, tensor in tensors.items()}


def _check_fit(part: str, saved: dict[str, Tensor], known: dict[str, Tensor],
               needed: list[str]) -> None:
    for key in [*saved, *needed]:
        if (key not in saved or key not in known
                or saved[key].shape != known[key].shape):
            raise ValueError(_does_not_fit(
                part, f'{key} is missing on one side or has another shape'))


def _does_not_fit(part: str, reason: str) -> str:
    return (f'The saved psw {part} does not fit this model, because {reason}: '
            'resume with the model and optimizer that were saved, or start '
            'the averaging anew with psw.restart=True.')


def check_options(sample_prob: Any, seed: Any, optimizer_state: Any,
                  write_back: Any, offload: Any, block: Any) -> None:
    """Check the options that need no optimizer.

    Raises:
        ValueError: One is out of its range.
    """
    if (not isinstance(sample_prob, (int, float))
            or isinstance(sample_prob, bool) or not 0 < sample_prob <= 1):
        raise ValueError(f'psw.sample_prob={sample_prob!r} is not possible: '
                         'use a probability in (0, 1].')
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f'psw.seed={seed!r} is not possible: use an integer '
                         '>= 0.')
    if optimizer_state not in ('keep', 'reset'):
        raise ValueError(f'psw.optimizer_state={optimizer_state!r} is not '
                         "possible: use 'keep' or 'reset'.")
    if not isinstance(write_back, bool):
        raise ValueError(f'psw.write_back={write_back!r} is not possible: '
                         'use True or False.')
    if offload not in (None, 'cpu'):
        raise ValueError(f'psw.offload={offload!r} is not possible: use '
                         "'cpu' or None.")
    if block is not None and (type(block) is not int or block < 2):
        raise ValueError(f'psw.block={block!r} is not possible: use an '
                         'integer >= 2, such as 128, or None.')
    if optimizer_state == 'reset' and not write_back:
        raise ValueError(
            "psw.optimizer_state='reset' does nothing with "
            'psw.write_back=False, because it happens at the writing back: '
            "use 'keep'.")


def _check_parameter(param: Tensor, name: str) -> None:
    if is_lazy(param):
        raise ValueError(
            f'Parameter {name} is not initialised yet: run one forward pass '
            'before the resampler is made.')
    if hasattr(param, 'to_local') or getattr(param, '_fsdp_flattened', False):
        raise ValueError(
            f'Parameter {name} is sharded over processes (a DTensor, or part '
            'of a FullyShardedDataParallel) and cannot be averaged, because '
            'each of them would decide for its own shard whether the mean is '
            'finite and is written back: use DistributedDataParallel.')
    if param.dtype not in ACCUMULATED_IN or param.layout != torch.strided:
        raise ValueError(
            f'Parameter {name} of {param.dtype} and {param.layout} cannot be '
            'averaged: use a dense floating-point or complex parameter, or '
            'freeze it.')


def _floating(buffers: Iterable[Tensor]) -> list[Tensor]:
    unique = {id(buffer): buffer for buffer in buffers}
    return [
        buffer for buffer in unique.values()
        if buffer.dtype in ACCUMULATED_IN and buffer.layout == torch.strided
    ]


def _norms(*columns: Sequence[Tensor]) -> list[list[float]]:
    """The 2-norms of a list's tensors, and of the differences to another's.

    Squares of finite values stay finite in float64. As that takes a CPU twice
    the time, it is left to what overflows in the tensors' own precision.
    """
    norms = _norms_in(ACCUMULATED_IN, *columns)
    if all(math.isfinite(norm) for column in norms for norm in column):
        return norms
    return _norms_in(_WIDEST, *columns)


_WIDEST = {
    dtype: torch.complex128 if dtype.is_complex else torch.float64
    for dtype in ACCUMULATED_IN
}


def _norms_in(precision: dict[torch.dtype, torch.dtype],
              *columns: Sequence[Tensor]) -> list[list[float]]:
    """One pass, with a few multi-tensor operations for each batch of pieces.

    The host waits once for each device and dtype.
    """
    totals = [[0.0] * len(columns[0]) for _ in columns]
    for indices in _same_kind(columns):
        group = [[column[i] for i in indices] for column in columns]
        device = group[0][0].device
        found, norms = [], []
        for batch in batches(group[0]):
            parts = [[
                piece.of(column).to(device, precision[column[0].dtype])
                for piece in batch
            ] for column in group]
            for other in range(1, len(parts)):
                parts[other] = torch._foreach_sub(parts[0], parts[other])
            for total, part in zip(totals, parts):
                found += [(total, indices[piece.index]) for piece in batch]
                norms += torch._foreach_norm(part)
        for (total, i), norm in zip(found, torch.stack(norms).tolist()):
            total[i] = math.hypot(total[i], norm)
    return totals


def _same_kind(columns: Sequence[Sequence[Tensor]]) -> Iterable[list[int]]:
    """Numbers of the rows whose devices and dtypes are the same."""
    kinds: dict[tuple, list[int]] = {}
    for index, row in enumerate(zip(*columns)):
        kind = tuple((tensor.device, tensor.dtype) for tensor in row)
        kinds.setdefault(kind, []).append(index)
    return kinds.values()


def _fits(mean: Tensor, norm: float, live: Tensor) -> bool:
    """Whether no value is NaN, or too large for the live tensor's dtype.

    Mostly the norm is small enough to say so.
    """
    largest = torch.finfo(live.dtype).max
    return norm <= largest or bool((mean.abs() <= largest).all())


def _shift(m: Sequence[Tensor], live: Sequence[Tensor]) -> float:
    size, moved = (math.hypot(*norms) for norms in _norms(live, m))
    return moved / size if size else math.nan


def _copied(state: dict[Any, Any]) -> dict[Any, Any]:
    return {
        param: {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in entries.items()
        }
        for param, entries in state.items()
    }

"""The ``psw`` entry of a config, checked."""
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from mmpsw.methods.averaging import (
    PeriodicResampler,
    Technique,
    build_technique,
)
from mmpsw.methods.averaging.checks import check_options
from mmpsw.methods.averaging.schedule import check_range

__all__ = ['HOW_TO_ENABLE', 'Settings']

HOW_TO_ENABLE = '''
    optim_wrapper = dict(type='mmpsw.PSWOptimWrapper', psw=dict(type='PSWA'))
    custom_hooks = [dict(type='mmpsw.PSWHook')]'''


@dataclass(frozen=True)
class Settings:
    """The keys of ``psw``; see :class:`PSWOptimWrapper`.

    Raises:
        ValueError: A key is unknown, not one of the technique, or out of its
            range.
    """

    technique: Technique
    period: int = 1
    by_epoch: bool = True
    begin: int = 0
    end: int | None = None
    sample_prob: float = 1.0
    seed: int = 0
    buffers: str = 'average'
    optimizer_state: str = 'keep'
    write_back: bool = True
    weighting: str = 'uniform'
    evaluate: str = 'resampled'
    restart: bool = field(default=False, compare=False)

    def __post_init__(self):
        check_range(self.period, self.begin, self.end)
        check_options(self.sample_prob, self.seed, self.optimizer_state,
                      self.write_back, self.weighting, self.evaluate)
        for key in ('by_epoch', 'restart'):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f'{key}={getattr(self, key)!r} is not '
                                 'possible: use True or False.')
        if self.buffers not in ('average', 'keep', 'recalibrate'):
            raise ValueError(f'buffers={self.buffers!r} is not possible: use '
                             "'average', 'keep' or 'recalibrate'.")

    @classmethod
    def from_config(cls, psw: Any) -> 'Settings':
        """Check the ``psw`` entry of a config; it is left as it is."""
        if not isinstance(psw, dict) or 'type' not in psw:
            raise ValueError(
                f'psw={psw!r} does not say which technique to use: use '
                "psw=dict(type='PSWA'), 'PWALKS' or 'PSWM'.")
        # mmengine adds it to what is inherited from `mmpsw::_base_/...`.
        psw = {key: psw[key] for key in psw if key != '_scope_'}
        common = set(cls.__dataclass_fields__) - {'technique'}
        own = {key: psw[key] for key in psw if key not in common}
        keys = {key: psw[key] for key in psw if key in common}
        try:
            settings = cls(build_technique(**own), **keys)
        except ValueError as error:
            raise ValueError(f'psw: {error}') from error
        if not settings.by_epoch and 'period' not in psw:
            raise ValueError(
                'psw: by_epoch=False counts iterations, and a period of one '
                'iteration would change nothing: say how many with period, '
                'such as period=1000.')
        return settings

    @property
    def needs_hook(self) -> bool:
        """Whether something is needed that only the runner knows."""
        return (self.by_epoch or self.buffers != 'keep' or self.swaps)

    @property
    def swaps(self) -> bool:
        """Whether other weights than the live ones are validated."""
        return not self.write_back or self.evaluate == 'average'

    def state(self) -> dict[str, Any]:
        """Plain values that a resumed run must have too."""
        state = asdict(self)
        del state['restart']
        return dict(
            type=type(self.technique).__name__,
            **state.pop('technique'),
            **state)

    def build(self, optimizer: Optimizer, accumulation: int,
              epoch_length: int | None, buffers: Iterable[Tensor],
              **options: Any) -> PeriodicResampler:
        """Build the resampler, with epochs turned into iterations.

        Args:
            optimizer (Optimizer): Whose parameters are averaged.
            accumulation (int): Iterations for an optimizer update.
            epoch_length (int, optional): Iterations in an epoch.
            buffers (Iterable[Tensor]): The model's buffers.
            **options: Passed on to :class:`PeriodicResampler`.

        Raises:
            ValueError: Epochs are asked for where there are none, or the
                window does not fit the period.
        """
        unit = epoch_length if self.by_epoch else 1
        if not unit:
            raise ValueError(
                f'psw: period={self.period} counts epochs, but the length of '
                'an epoch is unknown, because the training data set has no '
                'length: count iterations, with by_epoch=False and period in '
                'iterations.')
        try:
            return PeriodicResampler(
                optimizer,
                self.technique,
                self.period * unit,
                begin=self.begin * unit,
                end=None if self.end is None else self.end * unit,
                accumulation=accumulation,
                sample_prob=self.sample_prob,
                seed=self.seed,
                buffers=() if self.buffers == 'keep' else buffers,
                optimizer_state=self.optimizer_state,
                write_back=self.write_back,
                weighting=self.weighting,
                evaluate=self.evaluate,
                **options)
        except ValueError as error:
            raise ValueError(f'psw: {error}') from error

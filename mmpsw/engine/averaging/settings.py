"""The ``psw`` entry of a config, checked."""
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch.optim import Optimizer

from mmpsw.methods.averaging import (
    PeriodicResampler,
    Settings,
    build_technique,
)

__all__ = ['HOW_TO_ENABLE', 'PSWSettings']

HOW_TO_ENABLE = '''
    optim_wrapper = dict(type='mmpsw.PSWOptimWrapper', psw=dict(type='PSWA'))
    custom_hooks = [dict(type='mmpsw.PSWHook')]'''


@dataclass(frozen=True)
class PSWSettings(Settings):
    """The keys of ``psw``: :class:`Settings`, in a runner's units.

    Args:
        by_epoch (bool): Whether ``period``, ``begin`` and ``end`` count
            epochs, or else iterations. In an iteration-based loop an epoch is
            one pass of the data set's length. Defaults to True.
        buffers (str): What becomes of the running statistics of normalisation
            layers: 'average', 'keep' or 'recalibrate' (forward passes over
            training batches after each resampling). Defaults to 'average'.

    Raises:
        ValueError: A key is unknown, not one of the technique, or out of its
            range.
    """

    by_epoch: bool = True
    buffers: str = 'average'

    def __post_init__(self):
        super().__post_init__()
        self.check_choice('by_epoch', True, False)
        self.check_choice('buffers', 'average', 'keep', 'recalibrate')

    @classmethod
    def from_config(cls, psw: Any) -> 'PSWSettings':
        """Check the ``psw`` entry of a config; it is left as it is."""
        if not isinstance(psw, dict) or 'type' not in psw:
            raise ValueError(
                f'psw={psw!r} does not say which technique to use: use '
                "psw=dict(type='PSWA'), 'PWALKS' or 'PSWM'.")
        # mmengine adds it to what is inherited from `mmpsw::_base_/...`.
        psw = {key: psw[key] for key in psw if key != '_scope_'}
        common = {field.name for field in fields(cls)} - {'technique'}
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a config has them."""
        state = asdict(self)
        return dict(type=type(self.technique).__name__,
                    **state.pop('technique'), **state)

    def build(self, optimizer: Optimizer, epoch_length: int | None,
              **options: Any) -> PeriodicResampler:
        """Build the resampler, with epochs turned into iterations.

        Args:
            optimizer (Optimizer): Whose parameters are averaged.
            epoch_length (int, optional): Iterations in an epoch.
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
        settings = {field.name: getattr(self, field.name)
                    for field in fields(Settings)}
        settings.update(
            period=self.period * unit, begin=self.begin * unit,
            end=None if self.end is None else self.end * unit)
        try:
            return PeriodicResampler(optimizer, **settings, **options)
        except ValueError as error:
            raise ValueError(f'psw: {error}') from error

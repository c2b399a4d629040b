"""OptimWrappers whose optimizers are followed by PSWHook."""
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn
from torch.optim import Optimizer

from mmpsw.methods.averaging import PeriodicResampler
from mmpsw.registry import OPTIM_WRAPPERS

from .follower import Follower
from .settings import HOW_TO_ENABLE, PSWSettings

__all__ = ['PSWAmpOptimWrapper', 'PSWOptimWrapper', 'PSWOptimWrapperMixin']


class PSWOptimWrapperMixin:
    """Periodic sampling over the weights, for an OptimWrapper.

    The wrapper trains as the stock one does. In each iteration in which it
    updated the weights, PSWHook samples them, and resamples them where a
    period ends. An update that a gradient scaler skips is no sample.

    Args:
        psw (dict): ``type``: 'PSWA', 'PWALKS' or 'PSWM', and

            - period (int): epochs (iterations with ``by_epoch=False``)
              between resamplings. Defaults to 1 epoch.
            - by_epoch (bool): In an iteration-based loop, an epoch is one
              pass of the data set's length. Defaults to True.
            - begin, end (int): Resample only within [begin, end), in the
              unit of ``period``. Defaults to 0 and None.
            - last (float or int): The window, as a fraction of the period or
              a number of updates; required by PWALKS, optional for PSWM.
            - momentum (float or str): PSWM only: beta in [0, 1), 'sample' or
              'polyak'. Defaults to 'sample'.
            - weighting (str): 'uniform', or 'linear': later samples count
              more. Defaults to 'uniform'.
            - sample_prob (float), seed (int): The probability with which an
              update in the window is sampled, and the seed of the generator
              that draws. Default to 1 and 0.
            - buffers (str): The running statistics of normalisation layers:
              'average', 'keep' or 'recalibrate'. All other buffers keep their
              live values. Defaults to 'average'.
            - write_back (bool): False: the average is validated, tested and
              saved, and training continues from the live weights. Defaults
              to True.
            - evaluate (str): What is validated, tested and saved:
              'resampled', what the last resampling left; or 'average', the
              mean of the period so far. Defaults to 'resampled'.
        **kwargs: Those of the OptimWrapper.

    Attributes:
        psw (PSWSettings): The settings.
        follower (Follower): What averages, when a run has begun.

    Raises:
        ValueError: ``psw`` has an unknown key or a value out of its range.
    """

    def __init__(self, psw: dict, **kwargs: Any):
        self.psw = PSWSettings.from_config(psw)
        super().__init__(**kwargs)
        self.follower: Follower | None = None

    @property
    def resampler(self) -> PeriodicResampler:
        """The follower's."""
        return self.follower.resampler

    def initialize_count_status(self, model: nn.Module, init_counts: int,
                                max_counts: int) -> None:
        """Before the first iteration, also see to it that the hook is there.

        Raises:
            ValueError: It is not.
        """
        self._check_followed()
        super().initialize_count_status(model, init_counts, max_counts)

    def step(self, **kwargs: Any) -> None:
        """Update the weights."""
        self._check_followed()  # an OptimWrapperDict initialises no counts
        super().step(**kwargs)

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the optimizer's state.

        Raises:
            ValueError: A version before 0.2 saved it, with the averaging's.
        """
        if 'psw' in state_dict:
            raise ValueError(
                'The checkpoint cannot be resumed from, because a version of '
                'mmpsw before 0.2 saved it, which numbered the averaged '
                'weights: resume with that version, or start a new run from '
                'its weights with load_from.')
        super().load_state_dict(dict(state_dict))  # mmengine pops from it

    def _check_followed(self) -> None:
        if self.follower is None:
            raise ValueError(
                f'{type(self).__name__} needs mmpsw.PSWHook, because that '
                'samples and resamples the weights: add both lines to the '
                f'config.{HOW_TO_ENABLE}')


@OPTIM_WRAPPERS.register_module()
class PSWOptimWrapper(PSWOptimWrapperMixin, OptimWrapper):
    __doc__ = PSWOptimWrapperMixin.__doc__

    def __init__(self, optimizer: Optimizer, psw: dict, **kwargs: Any):
        amp = kwargs.keys() & {'loss_scale', 'dtype'}
        if amp:
            raise ValueError(
                f'PSWOptimWrapper takes no {" and no ".join(sorted(amp))}, '
                "because it trains without mixed precision: use type="
                "'mmpsw.PSWAmpOptimWrapper'.")
        super().__init__(psw, optimizer=optimizer, **kwargs)


class _Amp(AmpOptimWrapper):
    """Mixed precision, also in bf16 on a CPU, which mmengine refuses.

    bf16 has the range of fp32, so that the loss is not scaled there.

    Raises:
        ValueError: Another dtype than bf16 is asked for on a CPU.
    """

    def __init__(self, dtype: Any = None, **kwargs: Any):
        if get_device() != 'cpu':
            super().__init__(dtype=dtype, **kwargs)
            return
        if dtype not in (None, 'bfloat16', torch.bfloat16):
            raise ValueError(
                f'dtype={dtype!r} is not possible on a CPU, because its mixed '
                "precision is in bfloat16: use dtype='bfloat16', or a GPU.")
        kwargs.pop('loss_scale', None)
        OptimWrapper.__init__(self, **kwargs)
        self.cast_dtype = torch.bfloat16
        self._scale_update_param = None
        self.loss_scaler = _GradScaler(enabled=False)

    def load_state_dict(self, state_dict: dict) -> None:
        """A run that was begun on a CPU has no scale."""
        if not state_dict.get('loss_scaler'):
            state_dict.pop('loss_scaler', None)
        super().load_state_dict(state_dict)


# Since torch 2.3 the one for CUDA has a name for all devices.
_GradScaler = getattr(torch.amp, 'GradScaler', torch.cuda.amp.GradScaler)


@OPTIM_WRAPPERS.register_module()
class PSWAmpOptimWrapper(PSWOptimWrapperMixin, _Amp):
    __doc__ = PSWOptimWrapperMixin.__doc__

    def __init__(self, optimizer: Optimizer, psw: dict, **kwargs: Any):
        super().__init__(psw, optimizer=optimizer, **kwargs)

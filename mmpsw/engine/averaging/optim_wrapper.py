"""OptimWrappers that sample after the updates and resample the weights."""
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.logging import MessageHub, print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn
from torch.optim import Optimizer

from mmpsw.methods.averaging import PeriodicResampler, Resampling
from mmpsw.registry import OPTIM_WRAPPERS

from .buffers import OwnedBuffers
from .settings import HOW_TO_ENABLE, Settings

__all__ = ['PSWAmpOptimWrapper', 'PSWOptimWrapper', 'PSWOptimWrapperMixin']


class PSWOptimWrapperMixin:
    """Adds periodic sampling over the weights to an OptimWrapper.

    The contract::

        update_params(loss):        # mmengine's, unchanged
            backward(loss)
            if should_update():
                step():             # extended here
                    optimizer.step()
                    resampler.step()

    An update that a gradient scaler skips is no sample.

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
            - momentum (float or str): PSWM only: beta in [0, 1), 'sample',
              'polyak' or 'ahead'. Defaults to 'sample'.
            - weighting (str): 'uniform', or 'linear': later samples count
              more. Defaults to 'uniform'.
            - sample_prob (float), seed (int): The probability with which an
              update in the window is sampled, and the seed of the generator
              that draws. Default to 1 and 0.
            - buffers (str): 'average', 'keep' or 'recalibrate'. Defaults to
              'average'.
            - optimizer_state (str): 'keep' or 'reset'. Defaults to 'keep'.
            - write_back (bool): False: the average is validated, tested and
              saved, and training goes on from the live weights. Defaults to
              True.
            - evaluate (str): What is validated, tested and saved:
              'resampled', what the last resampling left; or 'average', the
              mean of the period so far. Defaults to 'resampled'.
            - restart (bool): Start the averaging anew when resuming.
              Defaults to False.
        **kwargs: Those of the OptimWrapper.

    Raises:
        ValueError: ``psw`` has an unknown key or a value out of its range.
    """

    def __init__(self, psw: dict, **kwargs: Any):
        self.psw = Settings.from_config(psw)
        super().__init__(**kwargs)
        self.name = ''
        self.resampler: PeriodicResampler | None = None
        self._waiting: dict | None = None
        self._updated = False
        self.optimizer.register_step_post_hook(self._note_update)
        if not self.psw.needs_hook:
            self.attach()

    def attach(self,
               epoch_length: int | None = None,
               buffers: OwnedBuffers | None = None,
               name: str = '',
               names: dict[Tensor, str] | None = None,
               reduce_buffers: Callable | None = None) -> None:
        """Take what only the runner knows; :class:`PSWHook` calls it.

        Args:
            epoch_length (int, optional): Iterations in an epoch.
            buffers (OwnedBuffers, optional): Those of the model.
            name (str): The wrapper's name in an OptimWrapperDict.
            names (Dict[Tensor, str], optional): Names for messages.
            reduce_buffers (Callable, optional): See
                :class:`PeriodicResampler`.

        Raises:
            ValueError: The settings do not fit the loop or the model.
        """
        self.name = name
        self.buffers = buffers or OwnedBuffers()
        self.resampler = self.psw.build(
            self.optimizer,
            self._accumulative_counts,
            epoch_length,
            self.buffers.tensors,
            names=names,
            reduce_buffers=reduce_buffers,
            warn=_warn)
        if self._waiting is not None:
            self._resume(self._waiting)
            self._waiting = None

    def initialize_count_status(self, model: nn.Module, init_counts: int,
                                max_counts: int) -> None:
        """Also tells the resampler where the training ends.

        Raises:
            ValueError: The hook is missing although it is needed.
        """
        self._check_attached()
        super().initialize_count_status(model, init_counts, max_counts)
        schedule = self.resampler.schedule
        self.resampler.schedule = replace(schedule, total=max_counts)
        if schedule.begin >= max_counts:
            _warn(f'psw.begin is iteration {schedule.begin}, but the run ends '
                  f'at {max_counts}: the weights are never resampled.')
        elif schedule.begin + schedule.period > max_counts:
            _warn(f'psw.period is {schedule.period} iterations, but the run '
                  f'ends at {max_counts}: the weights are resampled only '
                  'once, at its end.')

    def step(self, **kwargs: Any) -> None:
        """Update, sample, and resample where a period ends."""
        self._check_attached()
        self._updated = False
        super().step(**kwargs)
        self.buffers.put_back()
        self._log(self.resampler.step(self._inner_count, self._updated))

    def finish(self) -> None:
        """Resample what is open, where the run ends inside of a period.

        For an OptimWrapperDict, whose wrappers are not told the run's end.
        """
        self.buffers.put_back()
        self._log(self.resampler.finish())

    def state_dict(self) -> dict:
        """The optimizer's state, with the resampler's under ``psw``."""
        state = super().state_dict()
        if self.resampler is not None:
            self.buffers.put_back()
            state['psw'] = dict(
                settings=self.psw.state(), **self.resampler.state_dict())
            # An OptimWrapperDict restores no counts, and the resampler only
            # sees iterations that update.
            state['psw']['iteration'] = self._inner_count
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the optimizer's state and go on with the averaging.

        Raises:
            ValueError: The averaging was saved under other settings.
        """
        state_dict = dict(state_dict)
        saved = state_dict.pop('psw', None)
        super().load_state_dict(state_dict)
        if self.psw.restart:
            _warn('The averaging starts anew, because psw.restart=True.')
        elif saved is None:
            _warn("The checkpoint has no averaging state ('psw'), because it "
                  'was saved without psw: a fresh period begins.')
        elif self.resampler is None:
            self._waiting = saved  # Runner.resume() came before train()
        else:
            self._resume(saved)

    def _resume(self, saved: dict) -> None:
        mine = self.psw.state()
        if mine != saved['settings']:
            raise ValueError(
                f'The checkpoint was saved with psw={saved["settings"]}, but '
                f'this run has psw={mine}: resume with the same settings, or '
                f'{_START_ANEW}')
        self._inner_count = saved['iteration']
        try:
            self.resampler.load_state_dict(saved)
        except ValueError as error:
            raise ValueError(f'{error} You can {_START_ANEW}') from error

    def _check_attached(self) -> None:
        if self.resampler is None:
            raise ValueError(
                f'{type(self).__name__} needs mmpsw.PSWHook, because only '
                'the runner knows epochs and buffers, and when the average '
                f'is to be used: add both lines to the config.{HOW_TO_ENABLE}'
            )

    def _note_update(self, optimizer: Optimizer, *_: Any) -> None:
        self._updated = happened(optimizer)

    def _log(self, done: Resampling | None) -> None:
        if done is None or not done.applied:
            return
        prefix = f'{self.name}.psw' if self.name else 'psw'
        hub = MessageHub.get_current_instance()
        hub.update_scalar(f'train/{prefix}/samples', done.samples)
        hub.update_scalar(f'train/{prefix}/shift', done.shift)
        verb = 'resampled' if self.psw.write_back else 'averaged'
        print_log(
            f'{prefix}: weights {verb} at iteration {self._inner_count} '
            f'({type(self.psw.technique).__name__}): psw/samples: '
            f'{done.samples}, psw/shift: {done.shift:.4g}',
            logger='current')


def happened(optimizer: Optimizer) -> bool:
    """Whether a step changes the weights, asked by its hooks.

    A GradScaler leaves the skipping to fused optimizers, and sets
    ``found_inf`` on them while they step.
    """
    found_inf = getattr(optimizer, 'found_inf', None)
    return found_inf is None or not found_inf.item()


@OPTIM_WRAPPERS.register_module()
class PSWOptimWrapper(PSWOptimWrapperMixin, OptimWrapper):
    __doc__ = PSWOptimWrapperMixin.__doc__

    def __init__(self, optimizer: Optimizer, psw: dict, **kwargs: Any):
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


_START_ANEW = (
    'start the averaging anew with psw.restart=True (on the command line: '
    '--cfg-options optim_wrapper.psw.restart=True).')


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)

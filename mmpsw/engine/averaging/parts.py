"""The weights that a checkpoint of PSW holds beside its ``state_dict``."""
from typing import Any

from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmpsw import checkpoints
from mmpsw.methods.averaging import PSWA, PeriodicResampler

from .buffers import owned_buffers

__all__ = ['PARTS', 'load_weights']

# What training goes on from, the open period's mean, the last period's mean.
PARTS = ('live', 'mean', 'previous')


def load_weights(path: str, content: Any, part: str | None, cfg: Config,
                 model: nn.Module) -> None:
    """Put weights of a checkpoint into a model.

    Args:
        path (str): Where it was read, for messages.
        content (Any): What was read.
        part (str, optional): One of PARTS; the ``state_dict`` by default.
        cfg (Config): The config that it was trained with.
        model (nn.Module): Built from that config.

    Raises:
        ValueError: It holds no such weights, or those of another model.
    """
    try:
        model.load_state_dict(checkpoints.weights(path, content))
    except RuntimeError as error:
        difference = str(error).splitlines()[-1].strip()
        raise ValueError(f"'{path}' does not fit the model of "
                         f"'{cfg.filename}' ({difference}); give the config "
                         'that it was trained with') from error
    if part is None:
        return
    optimizer = content.get('optimizer') or {}
    psw = optimizer.get('psw') or {}
    if any(isinstance(one, dict) and 'psw' in one
           for one in optimizer.values()):
        raise ValueError(f"'{path}' is of a run with several optimizers, for "
                         'which only the state_dict can be had: leave out '
                         f"'{part}'")
    if part not in psw:
        held = [f"'{other}'" for other in PARTS if other in psw]
        raise ValueError(
            f"'{path}' has no '{part}' weights beside its state_dict, because "
            'it was saved by another method, or at another time; it holds '
            f'{" and ".join(held) or "none"}')
    _load_part(part, psw, cfg, model)


def _load_part(part: str, psw: dict, cfg: Config, model: nn.Module) -> None:
    """They are numbered by the optimizer's parameters and the model's buffers;
    a resampler of the same ones takes them for the live weights."""
    stock = {key: cfg.optim_wrapper[key]
             for key in ('optimizer', 'paramwise_cfg', 'constructor')
             if key in cfg.optim_wrapper}
    wrapper = build_optim_wrapper(model, dict(stock, type='OptimWrapper'))
    buffers = owned_buffers(model, [('', wrapper)])[''].tensors
    keeps = psw['settings']['buffers'] == 'keep'
    PeriodicResampler(
        wrapper.optimizer, PSWA(), period=2, buffers=() if keeps else buffers
    ).load_state_dict(dict(psw, live=psw[part]))

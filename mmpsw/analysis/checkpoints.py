"""The weights in a checkpoint, those of the averaging among them.

A checkpoint of a PSW run holds more weights than those to deploy, in the
optimizer's ``psw`` state. They are named by a word behind the file's name::

    epoch_3.pth             what is deployed ('state_dict')
    epoch_3.pth:live        control arm: the weights that training goes on from
    iter_50.pth:mean        inside a period: the running mean of its samples
    epoch_3.pth:previous    PSWM: the mean that was written back last

so that the line from ``iter_51.pth`` to ``iter_51.pth:mean`` leads from the
live weights to the mean that is about to replace them, and the one from
``epoch_3.pth:live`` to ``epoch_3.pth`` does for the control arm.
"""
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from torch import Tensor, nn

from mmpsw.commands.average_checkpoints import load_checkpoint
from mmpsw.commands.checks import check_checkpoint
from mmpsw.engine.averaging.buffers import owned_buffers
from mmpsw.methods.averaging import PSWA, PeriodicResampler
from mmpsw.methods.averaging.mean import copy_

__all__ = ['check_weights', 'load_weights', 'split_name']

PARTS = ('live', 'mean', 'previous')


def split_name(name: str) -> tuple[str, str | None]:
    """``('epoch_3.pth', 'live')`` for ``epoch_3.pth:live``."""
    path, colon, part = name.rpartition(':')
    if colon and part in PARTS and not Path(name).exists():
        return path, part
    return name, None


def check_weights(name: str) -> None:
    """Look for a checkpoint, before anything is built.

    Raises:
        FileNotFoundError: There is none.
    """
    check_checkpoint(split_name(name)[0])


def load_weights(name: str, cfg: Config,
                 model: nn.Module) -> dict[str, Tensor]:
    """Load weights into a model.

    Args:
        name (str): A checkpoint's path, with ``:live``, ``:mean`` or
            ``:previous`` behind it for other weights than the deployed ones.
        cfg (Config): The config that it was trained with.
        model (nn.Module): The config's model.

    Returns:
        Dict[str, Tensor]: A copy of the model's state dict, on its device.

    Raises:
        ValueError, FileNotFoundError: There are no such weights, or they are
            of another model.
    """
    path, part = split_name(name)
    checkpoint = load_checkpoint(Path(path).expanduser())
    try:
        model.load_state_dict(checkpoint['state_dict'])
    except RuntimeError as error:
        difference = str(error).splitlines()[-1].strip()
        raise ValueError(f"'{path}' does not fit the model of "
                         f"'{cfg.filename}' ({difference}); give the config "
                         'that it was trained with') from error
    if part is not None:
        _load_part(part, _psw_state(path, part, checkpoint), cfg, model)
    _check_finite(name, model)
    return {key: value.clone() for key, value in model.state_dict().items()}


def _psw_state(path: str, part: str, checkpoint: dict) -> dict[str, Any]:
    psw = (checkpoint.get('optimizer') or {}).get('psw')
    if psw is None:
        raise ValueError(
            f"'{path}' has no weights '{part}', because it holds no averaging "
            'state: give a checkpoint with the optimizer, of a run with psw '
            '(and one optimizer)')
    if part not in psw:
        held = [f"'{other}'" for other in PARTS if other in psw]
        raise ValueError(
            f"'{path}' has no weights '{part}', because "
            f'{_WHEN_SAVED[part]}; beside the deployed ones it holds '
            f'{" and ".join(held) or "none"}')
    return psw


_WHEN_SAVED = dict(
    live='only with psw.write_back=False, after the first period, the live '
    'weights are not the deployed ones',
    mean='it was not saved in the window of a period, where a mean is '
    'running',
    previous='only PSWM and psw.write_back=False keep the last mean, from '
    "the first period's end on")


def _load_part(part: str, psw: dict, cfg: Config, model: nn.Module) -> None:
    """Put weights of the averaging into a model.

    They are numbered by the optimizer's parameters and the model's buffers;
    the resampler itself knows how.
    """
    wrapper = build_optim_wrapper(model, _stock(cfg.optim_wrapper))
    assert not isinstance(wrapper, OptimWrapperDict)  # _psw_state looked
    buffers = owned_buffers(model, [('', wrapper)])['']
    averages_buffers = psw['settings']['buffers'] != 'keep'
    resampler = PeriodicResampler(
        wrapper.optimizer,
        PSWA(),
        period=1,
        buffers=buffers.tensors if averages_buffers else (),
        block=psw['settings'].get('block'))
    # All samples' mean, or else what stands in for the mean of one.
    means = dict(samples=1, mean=psw[part])
    if part == 'mean':
        means = {key: value for key, value in psw.items()
                 if key in ('samples', 'mean') or key.startswith('blocks.')}
    resampler.load_state_dict(
        dict(means, iteration=0, resamplings=0, generator=psw['generator']))
    copy_(resampler.tensors, resampler.mean)


def _stock(optim_wrapper: dict) -> dict:
    """The config of a wrapper with the same optimizer, without psw or AMP."""
    keys = ('optimizer', 'paramwise_cfg', 'constructor')
    stock = {key: optim_wrapper[key] for key in keys if key in optim_wrapper}
    return dict(type='OptimWrapper', **stock)


def _check_finite(name: str, model: nn.Module) -> None:
    for key, param in model.named_parameters():
        if not torch.isfinite(param).all():
            raise ValueError(f"'{name}' has values in '{key}' that are not "
                             'finite; give other weights')

"""The set-up of a run, as the stock tools do it."""
import os
from argparse import Namespace

import torch
from mmengine import device
from mmengine.config import Config, ConfigDict
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

# What each launcher sets for its processes, and how to start it.
_LAUNCHER_SIGNS = {
    'pytorch': ('RANK', 'bash tools/dist_train.sh CONFIG PROCESSES'),
    'slurm': ('SLURM_PROCID', 'bash tools/slurm_train.sh'),
    'mpi': ('OMPI_COMM_WORLD_LOCAL_RANK', 'mpirun'),
}


class ConfigError(ValueError):
    """A ValueError that the building of a config's parts raised."""


def build_runner(cfg: Config) -> Runner:
    """Builds the runner of a config as the stock tools do.

    Raises:
        ConfigError: A part of the config has a wrong value.
    """
    _join_cpu_processes(cfg)
    try:
        if 'runner_type' in cfg:
            return RUNNERS.build(cfg)
        return Runner.from_cfg(cfg)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def set_work_dir(cfg: Config, args: Namespace, stem: str) -> None:
    """Sets the work dir: the option's, else the config's, else by name."""
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('./work_dirs', stem)


def set_launcher(cfg: Config, args: Namespace) -> None:
    """Sets the launcher.

    Raises:
        ValueError: The process was not started by it.
    """
    cfg.launcher = args.launcher
    if args.launcher == 'none':
        return
    if args.launcher != 'pytorch' and not has_accelerator():
        raise ValueError(
            f'--launcher {args.launcher} needs accelerators, but torch sees '
            'none; several CPU processes run with bash tools/dist_train.sh '
            'CONFIG PROCESSES')
    variable, command = _LAUNCHER_SIGNS[args.launcher]
    if variable not in os.environ:
        raise ValueError(
            f'--launcher {args.launcher} cannot be used, because {variable} '
            f'is not in the environment; start the processes with {command}')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))


def set_dataloader_defaults(cfg: Config, accelerator: bool) -> None:
    """Gives the dataloaders what the stock tools give them, in place.

    mmpretrain's own tools add its defaults, which are not in its configs. And
    workers cannot persist where there are none.
    """
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(key)
        if not isinstance(loader, dict):
            continue
        if cfg.get('default_scope') == 'mmpretrain':
            loader.setdefault('pin_memory', accelerator)
            loader.setdefault('persistent_workers', True)
            loader.setdefault('collate_fn', ConfigDict(type='default_collate'))
        if not loader.get('num_workers'):
            loader['persistent_workers'] = False


def has_accelerator() -> bool:
    """Whether there is a device that mmengine can autocast on."""
    return (device.is_cuda_available() or device.is_npu_available()
            or device.is_mlu_available() or device.is_musa_available())


def _join_cpu_processes(cfg: Config) -> None:
    """Joins torchrun's processes where mmengine, which sets a GPU, fails."""
    if (cfg.get('launcher') == 'pytorch' and not has_accelerator()
            and not torch.distributed.is_initialized()):
        torch.distributed.init_process_group('gloo')


def leave_processes() -> None:
    """Leaves the process group, all at once.

    A gloo process that still listens when its peer is gone aborts.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

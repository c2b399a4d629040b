"""The set-up of a run, as the stock tools do it."""
import os
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine import device
from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmpsw import compatibility, configs
from mmpsw.commands import options


def set_up(cfg: Config, args: Namespace) -> None:
    """Sets the work dir, the launcher and the defaults of a run, in place.

    Raises:
        ValueError: The config's framework is not installed, or the process
            was not started by ``--launcher``.
        ImportError: mmcv was built for another torch.
    """
    _check_framework(cfg)
    methods = [configs.folder_name(configs.method_name(name))
               for name in getattr(args, 'methods', ())]
    name = '_'.join([Path(cfg.filename).stem, *methods])
    cfg.work_dir = (args.work_dir or cfg.get('work_dir')
                    or os.path.join('./work_dirs', name))
    set_dataloader_defaults(cfg, has_accelerator())
    cfg.launcher = args.launcher
    if args.launcher != 'none':
        _check_launcher(args.launcher)
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
        if not has_accelerator():
            _fit_to_cpus(cfg)


def build_runner(cfg: Config) -> Runner:
    """Builds a runner; a ValueError where a part names a wrong value."""
    if (cfg.get('launcher') == 'pytorch' and not has_accelerator()
            and not torch.distributed.is_initialized()):
        torch.distributed.init_process_group('gloo')  # mmengine sets a GPU
    try:
        return (RUNNERS.build(cfg) if 'runner_type' in cfg else
                Runner.from_cfg(cfg))
    except ValueError as error:
        if options.raised_on_purpose(error):
            raise ValueError(str(error)) from error
        raise


class ValidateFirstHook(Hook):
    """Validates before the first step, which RandomStateHook makes up for."""

    priority = 'LOWEST'  # after the averages have begun

    def before_train(self, runner: Runner) -> None:
        """Validate, unless the run is resumed."""
        if runner.iter == 0 and runner.val_loop is not None:
            runner.val_loop.run()


def leave_processes() -> None:
    """Leaves the process group, all at once.

    A gloo process that still listens when another one is gone aborts.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def has_accelerator() -> bool:
    """Whether there is a device that mmengine can autocast on."""
    return (device.is_cuda_available() or device.is_npu_available()
            or device.is_mlu_available() or device.is_musa_available())


def set_dataloader_defaults(cfg: Config, accelerator: bool) -> None:
    """Gives the dataloaders what the stock tools give them, in place."""
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(key)
        if not isinstance(loader, dict):
            continue
        # mmpretrain's tools add its defaults, which its configs lack.
        if configs.framework(cfg) == 'mmpretrain':
            loader.setdefault('pin_memory', accelerator)
            loader.setdefault('persistent_workers', True)
            loader.setdefault('collate_fn', ConfigDict(type='default_collate'))
        if not loader.get('num_workers'):  # none, so none can persist
            loader['persistent_workers'] = False


def _check_framework(cfg: Config) -> None:
    """Building a model would end in an error that names none of this."""
    scope = configs.framework(cfg)
    if scope in MODULE2PACKAGE:
        if find_spec(scope) is None:
            raise ValueError(
                f"default_scope='{scope}' needs {scope}, which is not "
                f'installed; pip install {configs.pip_name(scope)}')
        compatibility.check_operations()


def _check_launcher(launcher: str) -> None:
    variable, command = options.LAUNCHERS[launcher]
    if launcher != 'pytorch' and not has_accelerator():
        raise ValueError(
            f'--launcher {launcher} needs accelerators, but torch sees none; '
            'several CPU processes run with bash tools/dist_train.sh CONFIG '
            'PROCESSES')
    if variable not in os.environ:
        raise ValueError(
            f'--launcher {launcher} cannot be used, because {variable} is not '
            f'in the environment; start the processes with {command}')


def _fit_to_cpus(cfg: Config) -> None:
    """DDP must not be given device ids, NCCL and SyncBN do not exist."""
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    wrapper = cfg.get('model_wrapper_cfg') or {}
    cfg.model_wrapper_cfg = dict(
        type=wrapper.get('type', 'MMDistributedDataParallel'),
        device_ids=None, broadcast_buffers=False,
        find_unused_parameters=wrapper.get(
            'find_unused_parameters',
            cfg.get('find_unused_parameters', False)))
    found = [node for node in configs.dicts(cfg.model)
             if configs.class_name(node.get('type')) in (
                 'SyncBN', 'MMSyncBN', 'SyncBatchNorm')]
    for node in found:
        node['type'] = 'BN'
    if found and is_main_process():
        print_log(
            f'{len(found)} SyncBN settings became BN: each process normalises '
            'by its own batch, as a CPU has no synchronised batch norm',
            'current')

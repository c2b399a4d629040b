"""What several processes run: a config's parts, and a script of trainings.

    torchrun --nproc-per-node 2 tests/several_processes.py FOLDER

Each process leaves in FOLDER/NAME/rank0.pt what it held after each iteration.
"""
import os
import signal
import sys
import time
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.runner import FlexibleRunner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from toy import Error, Points, Toy, runner

from mmpsw.methods.averaging import PSWA, PeriodicResampler
from mmpsw.runtime.ranks import check_same_weights

for registry, part in ((DATASETS, Points), (METRICS, Error), (MODELS, Toy)):
    registry.register_module(module=part, force=True)


DDP = dict(
    type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
FSDP = dict(type='MMFullyShardedDataParallel', device_id=torch.device('cpu'))


@HOOKS.register_module(force=True)
class Record(Hook):
    """Leaves what this process held after each iteration."""

    priority = 'LOWEST'

    def before_train(self, runner):
        self.seen = {}

    def after_train_iter(self, runner, *args, **kwargs):
        model = getattr(runner.model, 'module', runner.model)
        resampler = runner.optim_wrapper.resampler
        self.seen[runner.iter + 1] = dict(
            model={k: v.clone() for k, v in model.state_dict().items()},
            average=[m.clone() for m in resampler.average or ()],
            samples=resampler.samples, resamplings=resampler.resamplings)

    def after_train(self, runner):
        path = Path(runner.work_dir) / f'rank{get_rank()}.pt'
        torch.save(self.seen, path)


@HOOKS.register_module(force=True)
class Kill(Hook):
    """Kills rank 1 while the others wait for it in a resampling."""

    def before_train(self, runner):
        if get_rank() == 1:
            runner.optim_wrapper.resampler.reduce_buffers = self.kill

    def kill(self, buffers):
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module(force=True)
class Never(Hook):
    """What must be refused does not even begin."""

    def before_train_iter(self, runner, *args, **kwargs):
        raise AssertionError('a training began')


class Nudge(Hook):
    """Changes one bit of one weight of rank 1.

    Not the last one: whether later updates and the mean round that away
    depends on the machine.
    """

    def after_train_iter(self, runner, *args, **kwargs):
        if get_rank() == 1 and runner.iter + 1 == 4:
            weight = runner.model.module.net[3].weight
            weight.data.view(torch.int32)[0, 2] ^= 1 << 6


def train(work_dir, psw, hooks=(), wrapper=DDP, **keys):
    """Two epochs of three iterations, in two processes."""
    runner(
        work_dir,
        psw,
        dict(by_epoch=True, max_epochs=2),
        hook=False,
        hooks=[
            dict(type='mmpsw.PSWHook', check_ranks=True), *hooks,
            dict(type='Record')
        ],
        validate=False,
        launcher='pytorch',
        cfg=dict(model_wrapper_cfg=dict(wrapper)),
        **keys).train()


def all_trainings(folder):
    for buffers in ('average', 'recalibrate'):
        psw = dict(type='PSWM', buffers=buffers)
        train(folder / buffers, psw)
        train(folder / f'{buffers}_resumed', psw, resume=True,
              load_from=str(folder / buffers / 'iter_4.pth'))
    train(folder / 'synced', dict(type='PSWM', buffers='average'),
          [dict(type='SyncBuffersHook')])
    train(folder / 'control', dict(type='PSWA', write_back=False))
    failing(folder / 'nudged', lambda: train(
        folder / 'nudged', dict(type='PSWA', buffers='keep'), [Nudge()]))
    weights = dict(a=torch.ones(3), half=torch.zeros(2, dtype=torch.bfloat16),
                   pair=torch.zeros(2, dtype=torch.complex128))
    check_same_weights(weights, 7)
    weights['half'][1] = 0. * (-1)**get_rank()  # equal, but for the sign bit
    weights['pair'][0] = get_rank()
    failing(folder / 'types', lambda: check_same_weights(weights, 7))


def sharded(folder):
    """Every way to shard the weights; each of them is refused."""
    psw = dict(type='PSWA')
    failing(folder / 'fsdp1', lambda: resampler(FullyShardedDataParallel(
        network(), use_orig_params=True, device_id=torch.device('cpu'))))
    if hasattr(torch.distributed.fsdp, 'fully_shard'):
        failing(folder / 'fsdp2', lambda: resampler(fully_sharded()))
    failing(folder / 'runner', lambda: train(
        folder / 'runner', psw, [dict(type='Never')], FSDP))
    failing(folder / 'flexible', lambda: flexible_runner(
        folder / 'flexible', psw).train())


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))


def fully_sharded():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # since torch 2.6
    return fully_shard(network(), mesh=init_device_mesh('cpu', (2, )))


def resampler(model):
    """In a loop of one's own."""
    names = {p: n.removeprefix('_fsdp_wrapped_module.')
             for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    PeriodicResampler(optimizer, PSWA(), period=3, names=names)


def flexible_runner(work_dir, psw):
    return FlexibleRunner(
        Toy(),
        work_dir=str(work_dir),
        launcher='pytorch',
        strategy=dict(type='FSDPStrategy', model_wrapper=dict(FSDP)),
        train_dataloader=dict(
            batch_size=4, collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=dict(type='Points')),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(type='mmpsw.PSWOptimWrapper', psw=psw,
                           optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='mmpsw.PSWHook'), dict(type='Never')])


def failing(folder, action):
    """Leave the message of the error that this process raised."""
    folder.mkdir(exist_ok=True)
    try:
        action()
    except (RuntimeError, ValueError) as error:
        (folder / f'rank{get_rank()}.txt').write_text(str(error))


if __name__ == '__main__':
    torch.distributed.init_process_group('gloo')
    all_trainings(Path(sys.argv[1]))
    sharded(Path(sys.argv[1]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()

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

from mmpsw.methods.averaging import PSWA, PSWM, PWALKS, PeriodicResampler

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
        resampler = getattr(runner.optim_wrapper, 'resampler', None)
        if resampler is None:
            return
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
            runner.optim_wrapper.resampler.reduce_statistics = self.kill

    def kill(self, buffers):
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module(force=True)
class Statistics(Hook):
    """Leaves what rides along at the end."""

    priority = 'LOWEST'

    def after_train(self, runner):
        beside = next(hook for hook in runner.hooks
                      if type(hook).__name__ == 'RideAlongHook')
        path = Path(runner.work_dir) / f'beside{get_rank()}.pt'
        torch.save(beside.averages['psw'].state_dict(), path)


@HOOKS.register_module(force=True)
class Never(Hook):
    """What must be refused does not even begin."""

    def before_train_iter(self, runner, *args, **kwargs):
        raise AssertionError('a training began')


def train(work_dir, psw, hooks=(), wrapper=DDP, **keys):
    """Two epochs of three iterations, in two processes."""
    runner(
        work_dir,
        psw,
        dict(by_epoch=True, max_epochs=2),
        hooks=[*hooks, dict(type='Record')],
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
    train(folder / 'psw', dict(type='PSWA', write_back=False))
    psw = dict(type='PSWA', write_back=False)
    train(folder / 'riding', None, [dict(
        type='mmpsw.RideAlongHook', averages=dict(psw=dict(psw=psw)),
        folders=dict(psw=str(folder / 'beside'))), dict(type='Statistics')])


def sharded(folder):
    """Ways to shard the weights that are refused."""
    psw = dict(type='PSWA')
    failing(folder / 'fsdp1', lambda: resampler(FullyShardedDataParallel(
        network(), use_orig_params=True, device_id=torch.device('cpu'))))
    failing(folder / 'runner', lambda: train(
        folder / 'runner', psw, [dict(type='Never')], FSDP))
    failing(folder / 'flexible', lambda: flexible_runner(
        folder / 'flexible', psw).train())


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))


def resampler(model):
    """In a loop of one's own."""
    names = {p: n.removeprefix('_fsdp_wrapped_module.')
             for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    PeriodicResampler(optimizer, PSWA(), period=3, names=names)


SHARDED = {
    'pswa': (PSWA(), {}), 'pwalks': (PWALKS(last=3), {}),
    'pswm': (PSWM(momentum=0.5), {}), 'psw': (PSWA(), dict(write_back=False))
}


class InAnyProcess:
    """The same training in one process, or in shards of several.

    Shards are uneven: 7 rows on 2 processes, and 1, which leaves one empty.
    """

    def __init__(self, name, shard=None):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Linear(7, 1))
        if shard is not None:
            shard(self.model)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.05, momentum=0.9)
        technique, keys = SHARDED[name]
        self.messages = []
        self.resampler = PeriodicResampler(
            self.optimizer, technique, 4, model=self.model,
            warn=self.messages.append, **keys)

    def train(self, *steps):
        """Yields all weights, and what is shown, after each step."""
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(8, 4, generator=generator)
            self.optimizer.zero_grad()
            self.model(x).square().mean().backward()
            self.optimizer.step()
            done = self.resampler.step()
            live = self.weights()
            with self.resampler.averaged():
                yield dict(live=live, shown=self.weights(),
                           shift=done.shift if done else 0.,
                           applied=done is None or done.applied)

    def weights(self):
        return {name: (value.full_tensor() if hasattr(value, 'full_tensor')
                       else value).detach().clone()
                for name, value in self.model.state_dict().items()}

    def state(self):
        from torch.distributed.checkpoint.state_dict import get_state_dict
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return dict(model=model, optimizer=optimizer,
                    resampler=self.resampler.state_dict())

    def load(self, state):
        from torch.distributed.checkpoint.state_dict import set_state_dict
        set_state_dict(self.model, self.optimizer,
                       model_state_dict=state['model'],
                       optim_state_dict=state['optimizer'])
        self.resampler.load_state_dict(state['resampler'])


def in_shards(folder):
    """fully_shard (FSDP2): whole, resumed inside a period, and with an inf."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh('cpu', (2, ))

    def shard(model):
        fully_shard(model, mesh=mesh)

    folder.mkdir(exist_ok=True)
    found = {}
    for name in SHARDED:
        whole = InAnyProcess(name, shard)
        records = list(whole.train(*range(1, 8)))
        dcp.save(whole.state(), checkpoint_id=folder / name)
        records += whole.train(*range(8, 13))
        other = InAnyProcess(name, shard)
        list(other.train(1))  # another run, before it loads
        state = other.state()
        dcp.load(state, checkpoint_id=folder / name)
        other.load(state)
        found[name] = dict(whole=records,
                           resumed=list(other.train(*range(8, 13))))
    broken = InAnyProcess('pswa', shard)
    records = list(broken.train(1, 2, 3))
    if get_rank() == 1:  # the shard of one process, in the last sample

        @torch.no_grad()
        def overflow(*args):
            broken.model[0].weight.to_local()[0, 0] = torch.inf

        broken.optimizer.register_step_post_hook(overflow)
    records += broken.train(4)
    found['broken'] = dict(applied=records[-1]['applied'],
                           messages=broken.messages)
    torch.save(found, folder / f'rank{get_rank()}.pt')


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
    in_shards(Path(sys.argv[1]) / 'shards')
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()

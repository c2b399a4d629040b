"""A small real model and data set, to run real mmengine Runners on."""
import copy
import uuid

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

LENGTH = 24


class Points(Dataset):
    """24 points and their targets."""

    metainfo = dict(name='points')

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(LENGTH, 4, generator=generator)
        self.y = self.x.sum(1, keepdim=True).sin()

    def __len__(self):
        return LENGTH

    def __getitem__(self, index):
        return self.x[index], self.y[index]


class Toy(BaseModel):
    """A linear, batch norm, linear network."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x, y, mode='tensor'):
        out = self.net(x)
        if mode == 'loss':
            return dict(loss=(out - y).square().mean())
        return [(out, y)] if mode == 'predict' else out


class TwoOptimizers(Toy):
    """One loss, and its gradients for a wrapper each."""

    def train_step(self, data, optim_wrapper):
        loss = self(*map(here, data), mode='loss')['loss']
        for wrapper in optim_wrapper.values():
            wrapper.zero_grad()
        loss.backward()
        for wrapper in optim_wrapper.values():
            wrapper.step()
        return dict(loss=loss)


def here(value):
    """A model or a tensor on the device on which a runner trains."""
    return value.to(get_device())


class Error(BaseMetric):
    """Mean squared error."""

    def process(self, data_batch, data_samples):
        self.results += [(out - y).square().mean().item()
                         for out, y in data_samples]

    def compute_metrics(self, results):
        return dict(error=np.float32(sum(results) / len(results)))


class Weights(Hook):
    """Keeps the live weights after each iteration, before any other hook."""

    priority = 'HIGHEST'

    def __init__(self):
        self.after = []

    def after_train_iter(self, runner, *args, **kwargs):
        self.after.append(copy.deepcopy(runner.model.state_dict()))


class After(Weights):
    """What was written back, too."""

    priority = 'ABOVE_NORMAL'  # behind PSWHook, which comes first in the list


class Overflow(Hook):
    """A fused optimizer's every fourth step is skipped, as GradScaler does."""

    def before_train_iter(self, run, *args, **kwargs):
        run.optim_wrapper.optimizer.found_inf = here(
            torch.tensor(float(run.iter % 4 == 1)))


FUSED = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, fused=True))


@torch.no_grad()
def assert_statistics(model, batches):
    """Batch norm holds the plain average over these batches of points."""
    inputs = [model.net[0](here(x)) for x in batches]
    for name, values in (('running_mean', [x.mean(0) for x in inputs]),
                         ('running_var', [x.var(0) for x in inputs])):
        torch.testing.assert_close(getattr(model.net[1], name),
                                   torch.stack(values).mean(0))


def trained(*args, **keys):
    """The Runner, after its run."""
    run = runner(*args, **keys)
    run.train()
    return run


def runner(work_dir, psw=None, train_cfg=None, hook=True, hooks=(),
           optimizer=None, batch_size=4, checkpoint=None,
           sampler='DefaultSampler', validate=True, loader=None, model=None,
           dataset=None, kind='mmpsw.PSWOptimWrapper', resume_from=None,
           workers=0, val_cfg=None, **keys):
    """A Runner on Toy: 6 iterations an epoch.

    What is resumed saves no checkpoints, unless ``checkpoint`` says so.
    """
    init_default_scope('mmengine')
    if resume_from is not None:
        keys.update(resume=True, load_from=str(resume_from))
        checkpoint = checkpoint or dict(interval=-1)
    wrapper = dict(
        type='OptimWrapper',
        optimizer=optimizer or dict(type='SGD', lr=0.05, momentum=0.9),
        **keys.pop('wrapper', {}))
    custom_hooks = list(hooks)
    if psw is not None:
        wrapper.update(type=kind, psw=psw)
        if hook:
            custom_hooks.insert(0, dict(type='mmpsw.PSWHook'))
    stock = dict(batch_size=batch_size, num_workers=workers,
                 collate_fn=dict(type='default_collate'),
                 sampler=dict(type=sampler, shuffle=True, seed=0),
                 dataset=dataset or Points())
    val = dict(
        val_dataloader=dict(
            stock, sampler=dict(type='DefaultSampler', shuffle=False)),
        val_cfg=val_cfg or dict(),
        val_evaluator=Evaluator(Error())) if validate else {}
    return Runner(
        model or Toy(), str(work_dir),
        train_dataloader=stock if loader is None else loader,
        train_cfg=train_cfg or dict(by_epoch=True, max_epochs=4),
        optim_wrapper=wrapper,
        custom_hooks=custom_hooks,
        default_hooks=dict(
            # the stock logger asks for the length of the loader
            **({} if loader is None else dict(logger=None)),
            checkpoint=dict(
                type='CheckpointHook',
                **(checkpoint or dict(by_epoch=False, interval=1)))),
        randomness=dict(seed=0),
        experiment_name=uuid.uuid4().hex,
        log_level='WARNING',
        **val,
        **keys)

"""A GAN of a few hundred weights and its data, to run real Runners on."""
import copy
import os
import signal
import uuid
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import Dataset

import mmpsw.engine  # noqa: F401
from mmpsw.methods.free_adversarial import Scores


@DATASETS.register_module(force=True)
class Spots(Dataset):
    """Images of 4x4 pixels with a bright spot, whose row is the class."""

    def __init__(self, length=24, classes=3):
        self.length = length
        self.metainfo = dict(classes=[str(k) for k in range(classes)])

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        label = index % len(self.metainfo['classes'])
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(3, 4, 4, generator=generator) * 100
        image[:, label, index % 4] = 255
        return dict(inputs=image, data_samples=BaseDataElement(
            gt_label=torch.tensor([label])))


@MODELS.register_module(force=True)
class TinyGenerator(nn.Module):
    """A linear layer, batch norm and a class's offset."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.noise_size, self.num_classes = 5, num_classes
        # A bias before batch norm would have a gradient of rounding errors,
        # which Adam makes as large as any.
        self.net = nn.Sequential(
            nn.Linear(5, 48, bias=False), nn.BatchNorm1d(48))
        self.offset = nn.Embedding(num_classes, 48)

    def forward(self, noise, labels):
        x = self.net(noise) + self.offset(labels)
        return x.unflatten(1, (3, 4, 4)).tanh()


@MODELS.register_module(force=True)
class TinyDiscriminator(nn.Module):
    """Two linear layers, with a projection and a classifier."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.num_classes = num_classes
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU())
        self.score = nn.Linear(8, 1)
        self.project = nn.Embedding(num_classes, 8)
        self.classes = nn.Linear(8, num_classes)

    def forward(self, images, labels):
        x = self.net(images)
        score = self.score(x).squeeze(1) + (self.project(labels) * x).sum(1)
        return Scores(score, self.classes(x))


@HOOKS.register_module(force=True)
class GANRecord(Hook):
    """Keeps what this process holds after each iteration, and writes it."""

    priority = 'HIGHEST'

    def __init__(self):
        self.seen = {}

    def after_train_iter(self, runner, *args, **kwargs):
        model = getattr(runner.model, 'module', runner.model)
        self.seen[runner.iter + 1] = copy.deepcopy(dict(
            model={name: value.cpu() for name, value
                   in model.state_dict().items()},
            delta=model.perturbation.state_dict()['delta'],
            noise=model.noise.get_state(), steps=model.steps))

    def after_train(self, runner):
        torch.save(self.seen,
                   Path(runner.work_dir) / f'rank{get_rank()}.pt')


def adam(**keys):
    return dict(optimizer=dict(type='Adam', lr=0.01, betas=(0., 0.9)), **keys)


def settings(model=None, optim_wrapper=None, hooks=(), batch_size=4,
             **keys):
    """A config's parts: 6 iterations, a checkpoint and validation each."""
    data = dict(
        batch_size=batch_size, num_workers=0,
        sampler=dict(type='InfiniteSampler', shuffle=True, seed=0),
        dataset=dict(type='Spots'))
    return dict(dict(
        model={**dict(
            type='mmpsw.FreeAdversarialGAN', epsilon=0.1,
            generator=dict(type='TinyGenerator'),
            discriminator=dict(type='TinyDiscriminator'),
            data_preprocessor=dict(
                type='ImgDataPreprocessor', mean=[127.5] * 3,
                std=[127.5] * 3)), **(model or {})},
        train_dataloader=data,
        train_cfg=dict(by_epoch=False, max_iters=6, val_interval=2),
        optim_wrapper=optim_wrapper or dict(
            constructor='mmpsw.GANOptimWrapperConstructor',
            averaged=['generator'], discriminator=adam(), generator=adam()),
        param_scheduler=[
            dict(type='ExponentialLR', gamma=0.9, by_epoch=False)],
        custom_hooks=[dict(type='mmpsw.GANHook', columns=2), *hooks],
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False,
                            interval=1)),
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=3)), **keys)


def runner(work_dir, *args, **keys):
    init_default_scope('mmengine')
    return Runner(work_dir=str(work_dir), experiment_name=uuid.uuid4().hex,
                  log_level='WARNING', **settings(*args, **keys))


@HOOKS.register_module(force=True)
class KillAt(Hook):
    """Ends the process as a lost machine does, in front of a save."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)

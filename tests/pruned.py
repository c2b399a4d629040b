"""A small convolutional model whose activation gradients are pruned.

    torchrun --nproc-per-node 2 tests/pruned.py FOLDER

trains it in two processes, each of which leaves its weights in
FOLDER/NAME/rank0.pt.
"""
import sys
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.model import BaseModel
from torch import nn
from torch.utils.checkpoint import checkpoint
from toy import Weights, runner

HOOK = dict(type='mmpsw.GradientPruningHook', rate=0.9, window=2, seed=3)


class Pixels(BaseModel):
    """Convolutions: one with batch norm, two with a ReLU, on 2x2 pixels.

    The norm is made before its convolution, as in mmpretrain's ResNet. The
    points' targets are those of the mean over the pixels.
    """

    def __init__(self, scale=1., reentrant=None):
        super().__init__()
        torch.manual_seed(0)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(1, 6, 2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(6, 4, 1)
        self.conv3 = nn.Conv2d(4, 1, 1)
        self.scale = scale
        self.reentrant = reentrant

    def first(self, x):
        return self.norm1(self.conv1(x)).relu_()

    def second(self, x):
        return self.conv2(x).relu_()

    def forward(self, x, y, mode='tensor'):
        x = x.view(-1, 1, 2, 2)
        for part in (self.first, self.second):
            x = (part(x) if self.reentrant is None else checkpoint(
                part, x.requires_grad_(), use_reentrant=self.reentrant))
        out = self.conv3(x).mean((1, 2, 3)).unsqueeze(1)
        if mode == 'loss':
            return dict(loss=(out - y).square().mean() * self.scale)
        return [(out, y)] if mode == 'predict' else out


def train(work_dir, **keys):
    """Two epochs of three iterations; returns the weights after each."""
    weights = Weights()
    runner(work_dir, train_cfg=dict(by_epoch=True, max_epochs=2),
           hooks=[HOOK, dict(type='mmpsw.RandomStateHook'), weights],
           validate=False, model=Pixels(), launcher='pytorch',
           cfg=dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel',
                                           device_ids=None)),
           **keys).train()
    torch.save(weights.after, Path(work_dir) / f'rank{get_rank()}.pt')


if __name__ == '__main__':
    torch.distributed.init_process_group('gloo')
    folder = Path(sys.argv[1])
    train(folder / 'whole')
    train(folder / 'resumed', resume_from=folder / 'whole/iter_4.pth')
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()

"""Prints a SHA-256 of the weights after every resampling of small real runs.

    python tests/digests.py > before.txt      # then change the code
    python tests/digests.py | diff before.txt -

A change that should not change numbers must show the same digests. Bits depend
on the machine and on torch, so no digest is kept: what the runs must equal,
a loop written by hand and the slow reference, is in tests/engine/averaging and
tests/methods/averaging. The runs: the three techniques, psw,
gradient accumulation, half precision on a CPU, a resume inside of a period, an
iteration-based loop, every kind of buffers, and two processes over gloo.
"""
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from launching import environment
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from several_processes import DDP
from toy import trained

RUNS = {
    'pswa': dict(psw=dict(type='PSWA')),
    'pwalks': dict(psw=dict(type='PWALKS', last=0.5)),
    'pswm': dict(psw=dict(type='PSWM', momentum=0.5)),
    'pswm sample, last': dict(
        psw=dict(type='PSWM', momentum='sample', last=3)),
    'psw': dict(psw=dict(type='PSWA', write_back=False)),
    'keep': dict(psw=dict(type='PSWA', buffers='keep')),
    'recalibrate': dict(psw=dict(type='PSWA', buffers='recalibrate')),
    'drawn': dict(psw=dict(type='PSWA', sample_prob=0.5, seed=3)),
    'adamw': dict(
        psw=dict(type='PSWA'), optimizer=dict(type='AdamW', lr=0.01)),
    'accumulation': dict(
        psw=dict(type='PSWA'), wrapper=dict(accumulative_counts=4)),
    'iterations': dict(
        psw=dict(type='PWALKS', last=2, by_epoch=False, period=5, begin=3),
        train_cfg=dict(by_epoch=False, max_iters=24)),
    'bf16': dict(psw=dict(type='PSWA'), kind='mmpsw.PSWAmpOptimWrapper'),
}


class Digest(Hook):
    """Collects the digests of one run, one for each resampling."""

    priority = 'LOWEST'

    def __init__(self):
        self.found = []
        self.resamplings = None

    def after_train_iter(self, runner, *args, **kwargs):
        resampler = runner.optim_wrapper.resampler
        before, self.resamplings = self.resamplings, resampler.resamplings
        if before == self.resamplings or (before is None
                                          and not self.resamplings):
            return
        model = getattr(runner.model, 'module', runner.model)
        with resampler.averaged():
            digest = sha256(model.state_dict().values())
        self.found.append((runner.iter + 1, digest))


def sha256(tensors):
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def train(work_dir, psw, **keys):
    """Trains one run; returns its (iteration, digest) pairs."""
    digest = Digest()
    trained(work_dir, psw, hooks=[digest], validate=False, **keys)
    return digest.found


def resumed(folder, at):
    """PSWM, gone on with from a checkpoint inside of its second period."""
    psw = dict(type='PSWM', momentum=0.5)
    train(folder / 'whole', psw)
    return train(folder / 'resumed', psw,
                 resume_from=folder / f'whole/iter_{at}.pth')


def in_two_processes(folder):
    """PSWA over gloo; rank 1 must end with the bits of rank 0."""
    subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         '--nproc-per-node', '2', __file__, str(folder)], env=environment(),
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return [(f'rank {rank}', (folder / f'rank{rank}.txt').read_text())
            for rank in range(2)]


def one_process(folder):
    """What torchrun starts."""
    torch.distributed.init_process_group('gloo')
    found = train(folder / 'work', dict(type='PSWA'), launcher='pytorch',
                  cfg=dict(model_wrapper_cfg=DDP))
    text = ' '.join(f'{where}:{digest}' for where, digest in found)
    (folder / f'rank{get_rank()}.txt').write_text(text)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main():
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, run in RUNS.items():
            for where, digest in train(folder / name, **run):
                print(f'{name} {where} {digest}', flush=True)
        for at in (8, 12, 15):
            for where, digest in resumed(folder / f'at {at}', at):
                print(f'resumed at {at} {where} {digest}', flush=True)
        (folder / 'two').mkdir()
        for where, digests in in_two_processes(folder / 'two'):
            print(f'two processes {where} {digests}', flush=True)


if __name__ == '__main__':
    torch.set_num_threads(1)
    if 'RANK' in os.environ:
        one_process(Path(sys.argv[1]))
    else:
        main()

"""Kills trainings, and looks whether the resumed ones end as if they were not.

    python tests/faults.py --runs 50 --seed 0

Each run is a small training by ``tools/train.py``'s own function, in a process
of its own, which saves at every iteration and keeps one to three checkpoints.
It is killed (``kill -9``) several times, at random moments and in the middle
of saving, and resumed each time. Where three checkpoints are kept, the newest
one is sometimes cut off, or a byte of it changed, before. At last all its
weights, its optimizer's, averaging's and random generators' state must be
those of an uninterrupted run, bit for bit. A *loss* is a run that ends
otherwise, or whose checkpoints were ever worth less than before a kill. The
exit status is 1 if there is one.

``--stock-saving`` leaves the saving to mmengine, to see that this notices.
"""
import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ['CUDA_VISIBLE_DEVICES'] = ''  # the processes are forked
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmengine.model import BaseModel  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402

from mmpsw import checkpoints  # noqa: E402
from mmpsw.checkpoints import PARTIAL  # noqa: E402
from mmpsw.commands import train  # noqa: E402
from mmpsw.engine.averaging import hook  # noqa: E402
from mmpsw.runtime import saving  # noqa: E402

UPDATES = 24
KILLS = 6  # of a run, at most
COMPARED = ('state_dict', 'live_state_dict', 'psw', 'optimizer',
            'param_schedulers', 'random_state')

CONFIG = '''
default_scope = 'mmengine'
model = dict(type='faults.Net')
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type='faults.Points'),
    sampler=dict(type='{sampler}', shuffle=True),
    collate_fn=dict(type='default_collate'))
train_cfg = dict({loop})
optim_wrapper = dict(
    type='OptimWrapper',
    accumulative_counts={accumulative_counts},
    optimizer=dict({optimizer}))
param_scheduler = dict(
    type='CosineAnnealingLR', T_max=24, by_epoch=False)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1000),
    checkpoint=dict(
        type='CheckpointHook',
        by_epoch=False,
        interval={accumulative_counts},
        max_keep_ckpts={keep}))
'''


class Points(Dataset):
    """24 points, with other noise each time, as augmentations make it."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(24, 256, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple:
        x = self.x[index] * np.float32(np.random.uniform(0.5, 1))
        return x + random.gauss(0, 0.1), self.x[index].sum().sin()


class Net(BaseModel):
    """Some megabytes of weights, so that writing them takes a while."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(256, 1024), nn.BatchNorm1d(1024),
                                 nn.ReLU(), nn.Dropout(), nn.Linear(1024, 1))

    def forward(self, x: Any, y: Any, mode: str = 'tensor') -> Any:
        """The squared error, or the output."""
        out = self.net(x).squeeze(1)
        return dict(loss=(out - y).square().mean()) if mode == 'loss' else out


@dataclass(frozen=True)
class Variant:
    """A training to be killed: what the command line and the config say."""

    name: str
    options: tuple[str, ...] = ()
    keep: int = 1
    optimizer: str = "type='SGD', lr=0.0001, momentum=0.9"
    loop: str = 'by_epoch=True, max_epochs=4'
    sampler: str = 'DefaultSampler'
    # mmengine does not save half an accumulation: no checkpoint inside one
    accumulative_counts: int = 1

    def command(self, folder: Path, work_dir: Path) -> list[str]:
        """The arguments of tools/train.py; the config is written."""
        config = folder / f'{self.name}.py'
        keys = {key: value for key, value in vars(self).items()
                if key not in ('name', 'options')}
        config.write_text(CONFIG.format(**keys))
        return [str(config), '--seed', '0', '--work-dir', str(work_dir),
                *self.options]


VARIANTS = (
    Variant('pswm', ('--with', 'pswm')),
    Variant('pwalks', ('--with', 'pwalks'), keep=3),
    Variant('baseline'),
    Variant('psw', ('--with', 'pswa', '--cfg-options',
                        'optim_wrapper.psw.write_back=False'), keep=3),
    Variant('iterations', ('--with', 'pswm', '--cfg-options',
                           'optim_wrapper.psw.by_epoch=False',
                           'optim_wrapper.psw.period=7',
                           'optim_wrapper.psw.sample_prob=0.5'),
            loop="type='IterBasedTrainLoop', max_iters=24",
            sampler='InfiniteSampler'),
    Variant('adam', ('--with', 'pswa'), keep=3, accumulative_counts=2,
            optimizer="type='Adam', lr=0.001"),
)


@dataclass
class Tally:
    """What was done to the runs, and what came of it."""

    faults: Counter = field(default_factory=Counter)
    resumes: int = 0
    losses: list[str] = field(default_factory=list)


class Process:
    """A training in a process of its own, forked: imports take seconds."""

    def __init__(self, argv: list[str], log: Path, stock: bool):
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            with log.open('a') as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            if stock:
                saving.save_safely = hook.save_safely = lambda runner: None
            status = train.main(argv)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def wait(self) -> int:
        """Waits for the end; returns the status, -9 where it was killed."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def ended(self) -> bool:
        """Whether it is over; wait() still tells how."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, flags) is not None

    def kill(self) -> int:
        """Kills it at once; returns the status."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()


class Campaign:
    """Runs, kills, resumes, compares.

    Args:
        folder: For all files.
        seed: Of the faults.
        stock: Whether mmengine's own saving is used.
    """

    def __init__(self, folder: Path, seed: int, stock: bool = False):
        self.folder = folder
        self.random = random.Random(seed)
        self.stock = stock
        self.tally = Tally()
        self.references: dict[str, tuple[dict, float]] = {}

    def run(self, number: int) -> None:
        """A run, with all its kills."""
        variant = VARIANTS[number % len(VARIANTS)]
        whole, seconds = self._reference(variant)
        work_dir = self.folder / f'{number}_{variant.name}'
        problem = self._run(variant, work_dir, whole, seconds)
        if problem is None:
            shutil.rmtree(work_dir)
            return
        self.tally.losses.append(f'{work_dir}: {problem}')

    def _reference(self, variant: Variant) -> tuple[dict, float]:
        if variant.name not in self.references:
            work_dir = self.folder / variant.name
            begin = time.monotonic()
            argv = variant.command(self.folder, work_dir)
            log = self.folder / f'{variant.name}.log'
            if Process(argv, log, self.stock).wait() != 0:
                raise RuntimeError(f'it does not train: {log.read_text()}')
            seconds = time.monotonic() - begin
            self.references[variant.name] = final(work_dir), seconds
            shutil.rmtree(work_dir)
        return self.references[variant.name]

    def _run(self, variant: Variant, work_dir: Path, whole: dict,
             seconds: float) -> str | None:
        argv = variant.command(self.folder, work_dir)
        log = work_dir.with_suffix('.log')
        best, damaged = 0, set()
        for kill in range(KILLS + 1):
            process = Process(argv + ['--resume'] * (best > 0), log,
                              self.stock)
            self.tally.resumes += best > 0
            status = (self._kill(process, work_dir, seconds)
                      if kill < KILLS else process.wait())
            if status != -signal.SIGKILL:
                break
            now, skipped = newest(work_dir)
            torn = [why for why in skipped
                    if not any(name in why for name in damaged)]
            if now < best or torn:
                return f'of iteration {best}, {now} was left; {torn}'
            best = now
            if variant.keep > 1 and self.random.random() < 0.5:
                damaged |= self._damage(work_dir)
                best = newest(work_dir)[0]
        if status != 0:
            return f'it ended with {status}: {log.read_text()[-500:]}'
        return difference(whole, final(work_dir))

    def _kill(self, process: Process, work_dir: Path, seconds: float) -> int:
        """Kills at a random moment, or soon after a save has begun."""
        moment = time.monotonic() + self.random.uniform(0.1, 1) * seconds
        in_a_save = not self.stock and self.random.random() < 0.5
        while time.monotonic() < moment:
            if process.ended():
                return process.wait()
            time.sleep(0.001)
        while in_a_save and not partial_files(work_dir):
            if process.ended():
                return process.wait()
        time.sleep(self.random.uniform(0, 0.01) * in_a_save)
        status = process.kill()
        if status == -signal.SIGKILL:
            saving = bool(partial_files(work_dir))
            self.tally.faults['kill -9 while it saves' if saving else
                              'kill -9 at another moment'] += 1
        return status

    def _damage(self, work_dir: Path) -> set[str]:
        """Cuts off the newest checkpoint, or changes a byte; returns it."""
        found = sorted(work_dir.glob('*.pth'),
                       key=lambda path: int(path.stem.partition('_')[2]))
        if len(found) < 2:
            return set()
        data = bytearray(found[-1].read_bytes())
        place = self.random.randrange(len(data))
        if self.random.random() < 0.5:
            self.tally.faults['newest checkpoint cut off'] += 1
            del data[place:]
        else:
            # inside the tensors: elsewhere a byte may mean nothing
            place = len(data) // 4 + place // 2
            self.tally.faults['a byte of it changed'] += 1
            data[place] ^= 1
        found[-1].write_bytes(data)
        return {found[-1].name}


def newest(work_dir: Path) -> tuple[int, list[str]]:
    """The iteration to resume from (0: none), and what cannot be read."""
    path, skipped = checkpoints.newest_readable(work_dir)
    return int(path.stem.partition('_')[2]) if path else 0, skipped


def partial_files(work_dir: Path) -> list[str]:
    """The checkpoints that are being written, or were when it was killed."""
    names = os.listdir(work_dir) if work_dir.is_dir() else []
    return [name for name in names
            if name.endswith(PARTIAL) and name.startswith('.iter')]


def final(work_dir: Path) -> dict[str, Any]:
    """What must be equal of the last checkpoint."""
    path = work_dir / f'iter_{UPDATES}.pth'
    content = checkpoints.read(path)
    copied = torch.load(path, weights_only=True)  # the file is removed
    return {key: copied[key] for key in COMPARED if key in content}


def difference(a: Any, b: Any) -> str | None:
    """The first place where two contents are not equal, bit for bit."""
    return next(differences(a, b, ''), None)


def differences(a: Any, b: Any, place: str) -> Iterator[str]:
    """All such places."""
    if type(a) is not type(b):
        yield f'{place}: {type(a)} is not {type(b)}'
    elif isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or not torch.equal(a, b):
            yield f'{place}: the tensors differ'
    elif isinstance(a, dict):
        if a.keys() != b.keys():
            yield f'{place}: {sorted(map(str, a.keys() ^ b.keys()))}'
        for key in a.keys() & b.keys():
            yield from differences(a[key], b[key], f'{place}.{key}')
    elif isinstance(a, (list, tuple)):
        if len(a) != len(b):
            yield f'{place}: the lengths differ'
        for index, pair in enumerate(zip(a, b)):
            yield from differences(*pair, f'{place}.{index}')
    elif a != b:
        yield f'{place}: {a!r} is not {b!r}'


def main() -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=int, default=50)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--stock-saving', action='store_true')
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix='faults'))
    campaign = Campaign(folder, args.seed, args.stock_saving)
    begin = time.monotonic()
    for number in track(range(args.runs), 'runs',
                        console=Console(stderr=True)):
        campaign.run(number)
    tally = campaign.tally
    print('| runs | faults | resumes | losses | minutes |')
    print('| --- | --- | --- | --- | --- |')
    faults = ', '.join(f'{count} x {fault}'
                       for fault, count in sorted(tally.faults.items()))
    print(f'| {args.runs} | {faults} | {tally.resumes} | {len(tally.losses)} '
          f'| {(time.monotonic() - begin) / 60:.1f} |')
    for loss in tally.losses:
        print(f'LOSS {loss}')
    if not tally.losses:
        shutil.rmtree(folder)
    return 1 if tally.losses else 0


if __name__ == '__main__':
    sys.exit(main())

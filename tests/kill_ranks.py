"""Kills a process of a distributed training, again and again.

    python tests/kill_ranks.py --runs 10

Each run trains the toy through tools/dist_train.sh in two or three processes
with a checkpoint every iteration, kills one of them (kill -9) at a random
moment, and resumes. The job must end with an error within a minute, and the
resumed one with the weights and statistics of the run that nobody killed, bit
for bit. The exit status is 1 where that fails.
"""
import random
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

import torch
from launching import CONFIG, DIST_TRAIN, environment

from mmpsw.checkpoints import allow_resume

EPOCHS = 100  # 300 iterations with two processes, 200 with three
LIMIT = 60  # seconds from the kill to the job's end


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    allow_resume()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / 'toy.py').write_text(CONFIG)
        whole = {n: uninterrupted(folder, n) for n in (2, 3)}
        losses = 0
        for number in range(args.runs):
            processes = chance.choice((2, 3))
            rank = chance.randrange(processes)
            work_dir = folder / str(number)
            seconds, last = kill(folder, work_dir, processes, rank,
                                 chance.uniform(0, 2))
            train(folder, work_dir, processes, '--resume').wait()
            lost = difference(final(work_dir, processes), whole[processes])
            if lost:
                print(Path(f'{work_dir}.log').read_text(), file=sys.stderr)
            losses += bool(lost) or seconds > LIMIT
            print(f'run {number}: rank {rank} of {processes} killed after '
                  f'{last}; the job ended in {seconds:.1f} s; resumed: '
                  f'{lost or "equal"}', flush=True)
    print(f'{args.runs} runs, {losses} losses')
    return 1 if losses else 0


def train(folder, work_dir, processes, *more):
    log = open(f'{work_dir}.log', 'a')
    return subprocess.Popen(
        [*DIST_TRAIN, str(folder / 'toy.py'), str(processes), '--work-dir',
         str(work_dir), *more, '--cfg-options',
         f'train_cfg.max_epochs={EPOCHS}',
         # These statistics do not depend on what each process saw before.
         'optim_wrapper.psw.buffers=recalibrate',
         'log_level=WARNING',
         # Else DDP reorders its buckets after the first iteration, and adds
         # three gradients in another order: stock runs differ then, too.
         'find_unused_parameters=True'],
        env=environment(), stdout=log, stderr=log)


def uninterrupted(folder, processes):
    work_dir = folder / f'whole{processes}'
    if train(folder, work_dir, processes).wait() != 0:
        sys.exit(Path(f'{work_dir}.log').read_text())
    return final(work_dir, processes)


def final(work_dir, processes):
    path = work_dir / f'iter_{EPOCHS * 6 // processes}.pth'
    return torch.load(path, weights_only=True)['state_dict'] \
        if path.exists() else {}


def kill(folder, work_dir, processes, rank, wait):
    """Returns how long the job lived on, and its newest checkpoint."""
    job = train(folder, work_dir, processes)
    while not (work_dir / 'iter_1.pth').exists():
        if job.poll() is not None:
            sys.exit(Path(f'{work_dir}.log').read_text())
        time.sleep(0.01)
    time.sleep(wait)
    start = time.monotonic()
    subprocess.run(['kill', f'-{int(signal.SIGKILL)}',
                    str(worker(job.pid, rank))], check=True)
    try:
        status = job.wait(10 * LIMIT)
    except subprocess.TimeoutExpired:
        job.kill()
        sys.exit(f'the job hangs after rank {rank} was killed')
    if status == 0:
        sys.exit('the job ended as if nothing had happened')
    return (time.monotonic() - start,
            Path((work_dir / 'last_checkpoint').read_text()).name)


def worker(launcher, rank):
    """The process id of a rank: a child of torchrun, which dist_train is."""
    ids = subprocess.run(['ps', '--ppid', str(launcher), '-o', 'pid='],
                         capture_output=True, text=True, check=True).stdout
    for pid in map(int, ids.split()):
        variables = Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')
        if b'RANK=%d' % rank in variables:
            return pid
    raise LookupError(f'no process of rank {rank}')


def difference(one, other):
    """What differs, or nothing."""
    if not one:
        return 'no last checkpoint'
    return ', '.join(
        f'{name} by {(value - other[name]).abs().max():.2g}'
        for name, value in one.items() if not torch.equal(value, other[name]))


if __name__ == '__main__':
    sys.exit(main())

"""A training that is killed in the middle of a period goes on exactly."""
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
DET = ROOT / 'configs' / 'det' / 'retinanet_r18_digits.py'


def command(work_dir, psw, *more):
    """Three epochs of 4 iterations, with a checkpoint at each of them."""
    return [
        sys.executable,
        str(ROOT / 'tools' / 'train.py'),
        str(DET), '--psw', psw, '--seed', '0', '--work-dir',
        str(work_dir), *more, '--cfg-options', 'train_dataloader.batch_size=4',
        'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
        'train_cfg.max_epochs=3', 'train_cfg.val_interval=100',
        'default_hooks.checkpoint.by_epoch=False',
        'default_hooks.checkpoint.interval=1',
        'default_hooks.checkpoint.max_keep_ckpts=-1'
    ]


def newest(work_dir):
    """The number of the newest iteration whose checkpoint is complete."""
    pointer = work_dir / 'last_checkpoint'
    text = pointer.read_text() if pointer.exists() else ''
    return int(text.rpartition('_')[2].removesuffix('.pth') or 0)


def test_killed_in_the_middle_of_a_period(folder):
    subprocess.run(command(folder / 'whole', 'pswm'), check=True)

    process = subprocess.Popen(command(folder / 'killed', 'pswm'))
    while newest(folder / 'killed') < 6:  # the period ends at 8
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 6 <= newest(folder / 'killed') < 12
    assert not (folder / 'killed' / 'iter_12.pth').exists()

    subprocess.run(command(folder / 'killed', 'pswm', '--resume'), check=True)
    whole, resumed = (
        torch.load(folder / run / 'iter_12.pth', weights_only=False)
        for run in ('whole', 'killed'))
    assert whole['optimizer']['psw']['resamplings'] == 3
    for name, tensor in whole['state_dict'].items():
        assert torch.equal(tensor, resumed['state_dict'][name]), name


def test_a_short_campaign_of_kills():
    """tests/faults.py says what it does; the long form has 50 runs."""
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tests' / 'faults.py'), '--runs', '2',
         '--seed', '1'], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    row = done.stdout.splitlines()[2]
    kills = {where: int(count) for count, where in re.findall(
        r'(\d+) x kill -9 (while it saves|at another moment)', row)}
    assert sum(kills.values()) >= 3
    assert re.search(r'\| 0 \| [\d.]+ \|$', row), row

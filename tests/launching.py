"""Starts tools/dist_train.sh on the toy, in several processes on a CPU."""
import os
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST_TRAIN = ('bash', str(ROOT / 'tools' / 'dist_train.sh'))
CONFIG = '''
default_scope = 'mmengine'
custom_imports = dict(imports=['several_processes'])
model = dict(type='Toy')
train_dataloader = dict(
    batch_size=4, num_workers=0, collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True, seed=0),
    dataset=dict(type='Points'))
train_cfg = dict(by_epoch=True, max_epochs=4)
optim_wrapper = dict(
    type='mmpsw.PSWOptimWrapper',
    psw=dict(type='PSWA', sample_prob=0.7, seed=3),
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
custom_hooks = [dict(type='mmpsw.PSWHook'), dict(type='Record')]
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1))
'''


def environment(device='cpu'):
    """A free port, one thread for each process, and the toy to import.

    tools/dist_train.sh gives each process a GPU of its own, so that it is
    tested without; gloo lets several share one.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    return {
        **os.environ, 'PYTHON': sys.executable, 'PORT': port,
        'OMP_NUM_THREADS': '1',
        **({'CUDA_VISIBLE_DEVICES': ''} if device == 'cpu' else {}),
        'PYTHONPATH': ':'.join([str(ROOT / 'tests'), str(ROOT),
                                os.environ.get('PYTHONPATH', '')])
    }

"""A tiny run on generated digits, with a checkpoint at each update."""
from pathlib import Path

import pytest
import torch

from mmpsw.commands import train
from mmpsw.datasets.digits import generate

CONFIG = str(
    Path(__file__).resolve().parents[2] / 'configs/study/resnet18_digits.py')
# Four updates an epoch, two epochs.
SMALL = [
    '--cfg-options', 'model.backbone.stem_channels=4',
    'model.backbone.base_channels=4', 'model.head.in_channels=32',
    'train_dataloader.batch_size=4', 'train_dataloader.num_workers=0',
    'train_dataloader.dataset.indices=16', 'val_dataloader.num_workers=0',
    'val_dataloader.dataset.indices=8', 'test_dataloader.num_workers=0',
    'test_dataloader.dataset.indices=8', 'train_cfg.max_epochs=2'
]


@pytest.fixture(scope='session', autouse=True)
def one_thread():
    """Several threads are slower on models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def control_run(tmp_path_factory):
    """A psw arm: its work dir ``run``, beside ``data``."""
    folder = tmp_path_factory.mktemp('psw')
    generate(folder / 'data' / 'digits', train=16, val=4, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train.main([
            CONFIG, '--with', 'pswa', '--work-dir', 'run', *SMALL,
            'optim_wrapper.psw.write_back=False',
            'default_hooks.checkpoint.by_epoch=False',
            'default_hooks.checkpoint.interval=1',
            'default_hooks.checkpoint.max_keep_ckpts=-1'
        ]) == 0
    return folder


@pytest.fixture
def config():
    """The config of the run, and the options that make it small."""
    return CONFIG, SMALL


@pytest.fixture
def folder(control_run, tmp_path, monkeypatch):
    """The current folder, with the data and the run."""
    for name in ('data', 'run'):
        (tmp_path / name).symlink_to(control_run / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path

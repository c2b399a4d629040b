"""Every command, with configs of both styles: strings or classes for types."""
import os
import pickle
from pathlib import Path

import newer_style
import pandas as pd
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from scripts import script

from mmpsw.commands import average_checkpoints, compare, train
from mmpsw.commands import test as test_command
from mmpsw.runtime.resume import LIVE

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
TASKS = dict(cls='resnet18_digits', det='retinanet_r18_digits',
             seg='fpn_r18_digits')
STYLES = ('strings', 'classes')
DATA = ['--cfg-options', *(f'{phase}_dataloader.{setting}' for phase in
                           ('train', 'val', 'test') for setting in
                           ('num_workers=0', 'dataset.indices=4'))]
SMALL = [*DATA, 'train_dataloader.batch_size=2']
LENGTH = {
    task: ['train_cfg.max_iters=4', 'train_cfg.val_interval=2',
           'default_hooks.checkpoint.interval=2'] if task == 'seg' else
    ['train_cfg.max_epochs=2'] for task in TASKS}


@pytest.fixture(scope='module', params=TASKS)
def trained(request, data_folder, tmp_path_factory):
    """A folder with both configs of a task, and a run of each."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    (folder / 'data').symlink_to(data_folder / 'data')
    stock = CONFIGS / 'study' / f'{TASKS[task]}.py'
    (folder / 'strings.py').symlink_to(stock)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr('mmengine.device.utils.DEVICE', 'cpu')
        Path(newer_style.write(stock, folder)).rename('classes.py')
        for style in STYLES:
            forget()
            assert train.main([str(config(style, stock)), '--with', 'psw',
                               '--seed', '0', '--work-dir', style, *SMALL,
                               *LENGTH[task]]) == 0
    return task, folder, stock


def forget():
    """Each run begins as in a process of its own."""
    for kind in (MMLogger, DefaultScope, Visualizer,
                 *Visualizer.__subclasses__()):
        kind._instance_dict.clear()


def config(style, stock):
    return stock if style == 'strings' else Path('classes.py').resolve()


@pytest.fixture(params=STYLES)
def run(request, trained, monkeypatch, tmp_path):
    """The task, the config, and the checkpoints, where one may write."""
    task, folder, stock = trained
    forget()
    monkeypatch.chdir(folder)
    path = str(config(request.param, stock))
    monkeypatch.chdir(tmp_path)
    os.symlink(folder / 'data', 'data')
    saved = sorted(map(str, (folder / request.param).glob('*_[0-9].pth')))
    return task, path, saved


def test_both_train_the_same_weights(trained):
    _, folder, _ = trained
    old, new = (torch.load(sorted((folder / style).glob('*_[0-9].pth'))[-1])
                for style in STYLES)
    for name, value in old['state_dict'].items():
        assert torch.equal(value, new['state_dict'][name]), name


def test_resuming(run):
    task, path, (first, last) = run
    assert train.main([path, '--with', 'psw', '--work-dir', 'again',
                       '--resume', first, *SMALL, *LENGTH[task]]) == 0
    whole, resumed = (torch.load(name)['state_dict'] for name in
                      (last, Path('again', Path(last).name)))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_mixed_precision(run):
    task, path, _ = run
    assert train.main([path, '--with', 'pswa', '--amp', '--work-dir', 'run',
                       *SMALL, *LENGTH[task]]) == 0


def test_a_fixed_classifier(run):
    task, path, _ = run
    if task == 'det':
        pytest.skip('a one-stage detector has no such layer')
    assert train.main([path, '--with', 'hadamard', '--work-dir', 'run',
                       *SMALL, *LENGTH[task]]) == 0


def test_testing(run):
    """Its pictures, its predictions, and its test time augmentation."""
    task, path, (_, last) = run
    out = 'out' if task == 'seg' else 'out.pkl'
    assert test_command.main([path, last, '--work-dir', 'tested', '--out', out,
                              '--show-dir', 'shown', *DATA,
                              'default_hooks.visualization.interval=1']) == 0
    drawn = [file for folder in (Path('shown'), Path('tested'))
             for file in folder.rglob('*.png')]
    assert len(drawn) == 4
    if task == 'seg':
        assert len(list(Path(out).glob('*.png'))) == 4
    else:
        assert len(pickle.loads(Path(out).read_bytes())) == 4
    if task != 'seg':  # whose config would need a tta_pipeline
        forget()
        assert test_command.main([path, last, '--work-dir', 'tta', '--tta',
                                  *DATA]) == 0


def test_averaging_the_live_weights(run):
    _, _, (_, last) = run
    assert average_checkpoints.main(
        [last, '--weights', 'live', '--out', 'live.pth']) == 0
    live = torch.load(last)[LIVE]
    out = torch.load('live.pth')['state_dict']
    assert live and all(torch.equal(out[name], live[name]) for name in live)


def test_averaging_with_recalibrated_statistics(run):
    _, path, saved = run
    assert average_checkpoints.main(
        [*saved, '--recalibrate', path, '--batches', '1', '--out', 'mean.pth',
         *SMALL]) == 0
    means = [value for name, value in
             torch.load('mean.pth')['state_dict'].items()
             if name.endswith('running_mean')]
    assert means


def test_the_loss_between_checkpoints(run):
    _, path, saved = run
    line = script('analysis/loss_line.py')
    assert line.main([path, *saved, '--points', '2', '--batches', '1',
                      '--metric', '--out', 'line', *SMALL]) == 0
    assert set(pd.read_csv('line/line.csv').t) >= {0, 1}


def test_the_cost_of_averaging(run):
    task, path, _ = run
    if task != 'cls':
        pytest.skip('the same for every task')
    assert script('benchmark.py').main(
        ['step', path, '--repeats', '1', '--period', '8', '--arms', 'baseline',
         'psw', '--out', 'cost']) == 0


def test_comparing(run):
    task, path, _ = run
    if task != 'cls':
        pytest.skip('the same for every task')
    assert compare.main(['run', path, '--arms', 'baseline', 'psw',
                         '--work-dir', 'compared', *SMALL, *LENGTH[task]]) == 0
    assert Path('compared/report/table.md').exists()

"""Comparisons with a model zoo's baseline, as a user starts them."""
import json
from pathlib import Path

import made_coco
import pytest
import torch

from mmpsw.commands import compare
from mmpsw.compare.runs import read_run

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
RTMDET = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp('made')
    made_coco.generate(folder / 'data' / 'coco')
    return folder


@pytest.fixture
def folder(coco, tmp_path, monkeypatch):
    (tmp_path / 'data').symlink_to(coco / 'data')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    return tmp_path


def run(config, *argv, options=()):
    return compare.main(['run', config, '--work-dir', 'work', *argv,
                         '--cfg-options', *made_coco.SMALL, *options])


def test_all_data_that_are_missing_are_said_at_once(tmp_path, monkeypatch,
                                                    capsys):
    monkeypatch.chdir(tmp_path)
    assert run(RETINANET, '--dry-run') == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    for name in ('annotations/instances_train2017.json', 'train2017/',
                 'annotations/instances_val2017.json', 'val2017/'):
        assert f"'data/coco/{name}'" in error
    assert 'val_evaluator: ' in error


def test_two_processes_a_run(folder, capsys):
    """What rides along sees the mean of both; the plan has the notes."""
    argv = ['--arms', 'baseline', 'psw', '--gpus-per-run', '2']
    assert run(RETINANET, *argv, options=made_coco.RETINANET) == 0
    printed = capsys.readouterr().out
    plan = json.loads(Path('work/comparison.json').read_text())
    assert plan['passengers'] == ['psw'] and plan['processes'] == 2
    said = '\n'.join(plan['published'])
    for sentence in (
            'train_cfg.max_epochs is 1; the published training has 12.',
            'The batch is 4 (2 x 2 processes); the published training has 16',
            'The model differs from the published one in backbone.depth, ',
            'It is trained on other data than the published one (train_'
            'dataloader.dataset: pipeline).'):
        assert sentence in said and sentence in printed
    # 0 - 0.365, which the zoo publishes
    assert 'arm - zoo' in printed and '-0.365' in printed
    baseline, psw = (read_run(f'work/{arm}/seed_0')
                     for arm in ('baseline', 'psw'))
    # Twenty images, two processes, batches of two.
    assert [line['iter'] for line in baseline.training] == [1, 2, 3, 4, 5]
    # Nothing is found yet.
    assert baseline.validations[1]['coco/bbox_mAP'] == 0
    assert psw.validations[1]['coco/bbox_mAP'] == 0
    live, mean = (torch.load(f'work/{arm}/seed_0/epoch_1.pth',
                             weights_only=False)['state_dict']
                  for arm in ('baseline', 'psw'))
    assert any(not torch.equal(live[key], mean[key]) for key in live)
    assert not list(Path('work').rglob('psw/*.log'))


def test_psw_rides_beside_a_baseline_with_an_average_of_its_own(folder,
                                                                capsys):
    assert run(RTMDET, '--arms', 'baseline', 'psw', 'ema',
               options=made_coco.RTMDET) == 0
    saved = torch.load('work/baseline/seed_0/epoch_1.pth', weights_only=False)
    psw, ema = (torch.load(f'work/{arm}/seed_0/epoch_1.pth',
                           weights_only=False)['state_dict']
                for arm in ('psw', 'ema'))
    # The baseline deploys its EMA; the live weights lie beside it.
    key = 'bbox_head.rtm_cls.0.weight'
    weights = [saved['state_dict'][key], psw[key], ema[key]]
    live = saved['ema_state_dict'][f'module.{key}']
    for one in range(3):
        assert not torch.equal(weights[one], live)
        for other in range(one):
            assert not torch.equal(weights[one], weights[other])
    assert 'custom_hooks' not in '\n'.join(json.loads(
        Path('work/comparison.json').read_text())['published'])

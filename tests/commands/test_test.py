"""tools/test.py: what its options make of a config, and a test of each."""
import pickle
from pathlib import Path

import pytest
import torch

from mmpsw.commands import test as command
from mmpsw.commands import train
from mmpsw.runtime import saving

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco'
PSPNET = 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024'
RESNET = 'mmpretrain::resnet/resnet50_8xb32_in1k'
SMALL = [
    '--cfg-options', 'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0', 'test_dataloader.num_workers=0',
    'train_dataloader.batch_size=4', 'train_dataloader.dataset.indices=8',
    'val_dataloader.dataset.indices=4', 'test_dataloader.dataset.indices=4'
]


def build(*argv):
    return command.build_config(command.parse_args(argv))


def test_showing_uses_each_frameworks_hook():
    show = ['a.pth', '--show', '--show-dir', 'there', '--wait-time', '3']
    hook = build(RETINANET, *show).default_hooks.visualization
    assert (hook.draw, hook.show, hook.wait_time) == (True, True, 3)
    assert hook.test_out_dir == str(Path('there').resolve())
    assert hook.interval == 1
    cfg = build(PSPNET, *show)
    assert cfg.default_hooks.visualization.draw is True
    assert cfg.visualizer.save_dir == str(Path('there').resolve())
    hook = build(RESNET, *show).default_hooks.visualization
    assert (hook.enable, hook.show) == (True, True)
    assert hook.out_dir == str(Path('there').resolve())


def test_tta_wraps_the_model():
    cfg = build(RETINANET, 'a.pth', '--tta')
    assert cfg.model.type == 'DetTTAModel'
    assert cfg.model.module.type == 'RetinaNet'
    assert cfg.test_dataloader.dataset.pipeline == cfg.tta_pipeline
    cfg = build('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', 'a.pth',
                '--tta')  # has no TTA of its own
    assert cfg.model.type == 'DetTTAModel'
    steps = [step.type for step in cfg.test_dataloader.dataset.pipeline]
    assert steps == [
        'LoadImageFromFile', 'Resize', 'LoadAnnotations', 'TestTimeAug'
    ]
    assert build(PSPNET, 'a.pth', '--tta').model.type == 'SegTTAModel'
    cfg = build(RESNET, 'a.pth', '--tta')
    assert cfg.model.type == 'mmpretrain.AverageClsScoreTTA'
    assert cfg.test_dataloader.dataset.pipeline[-1].type == 'TestTimeAug'


@pytest.mark.parametrize('argv, message', [
    ([RETINANET, 'no.pth'], "checkpoint 'no.pth' does not exist"),
    ([RETINANET, 'a.pth'], "'data/coco/annotations/instances_val2017.json'"),
    ([RETINANET, 'a.pth', '--out', 'a.json'], 'does not end in .pkl'),
    (['mmdet::retina', 'a.pth'], 'mmdet has no config'),
    (['untested.py', 'a.pth'], 'has no test_dataloader'),
])
def test_one_line(argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={}), 'a.pth')
    Path('untested.py').write_text('a = 1\n')
    assert command.main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not Path('work_dirs').exists()


@pytest.mark.parametrize('config, small, metric', [
    ('study/resnet18_digits', ['train_cfg.max_epochs=1'], 'accuracy/top1'),
    ('study/retinanet_r18_digits', ['train_cfg.max_epochs=1'], None),
    ('study/fpn_r18_digits', ['train_cfg.max_iters=2',
                             'train_cfg.val_interval=2',
                             'default_hooks.checkpoint.interval=2'], 'mIoU'),
], ids=['cls', 'det', 'seg'])
def test_a_psw_checkpoint_is_tested(config, small, metric, folder, capsys):
    path = str(CONFIGS / f'{config}.py')
    assert train.main(
        [path, '--with', 'pswa', '--work-dir', 'run', *SMALL, *small]) == 0
    checkpoint = str(next(Path('run').glob('*_[0-9].pth')))
    out = 'out' if 'fpn' in config else 'out.pkl'
    argv = [path, checkpoint, '--out', out, '--work-dir', 'tested', *SMALL]
    metrics = command.test(command.parse_args(argv))
    # The detector has not learned to find a box, so it has no mAP either.
    assert metric is None or 0 <= metrics[metric] <= 100
    # A training may go on, or begin, beside it.
    assert str(folder / 'tested') not in saving._held
    if out == 'out.pkl':
        with open(out, 'rb') as file:
            assert len(pickle.load(file)) == 4
    else:
        assert len(list(Path(out).glob('*.png'))) == 4
    # With the config of the run, which stays, and what is there stays too.
    name = f'{Path(config).name}.py'
    saved = Path(f'run/{name}').read_bytes()
    argv = [f'run/{name}', checkpoint, '--out', out, *SMALL]
    assert command.main(argv) == 2
    assert f"--out '{out}' is there already" in capsys.readouterr().err
    assert command.main([*argv, '--overwrite']) == 0
    assert Path(f'run/{name}').read_bytes() == saved

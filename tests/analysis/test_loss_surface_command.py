"""tools/analysis/loss_surface.py on a tiny control arm."""
import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from mmpsw import configs
from mmpsw.analysis.checkpoints import load_weights, split_name
from mmpsw.analysis.objective import build_model
from mmpsw.commands import loss_surface as command
from mmpsw.commands import options
from mmpsw.commands import test as testing

CONFIG = str(
    Path(__file__).resolve().parents[2] / 'configs/cls/resnet18_digits.py')
SMALL = [
    '--cfg-options', 'model.backbone.stem_channels=4',
    'model.backbone.base_channels=4', 'model.head.in_channels=32',
    'train_dataloader.batch_size=4',
    'train_dataloader.dataset.indices=16', 'val_dataloader.num_workers=0',
    'val_dataloader.dataset.indices=8', 'test_dataloader.num_workers=0',
    'test_dataloader.dataset.indices=8'
]


def run(*argv):
    return command.main([*map(str, argv), '--batches', '2', *SMALL])


def rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def saved(update):
    return torch.load(f'run/iter_{update}.pth', weights_only=False)


def is_png(path):
    return Path(path).read_bytes()[:4] == b'\x89PNG'


def test_the_line_from_the_live_weights_to_the_average(folder):
    assert run('line', CONFIG, 'run/iter_8.pth:live', 'run/iter_8.pth',
               '--points', '3', '--metric', '--out', 'out') == 0
    points = rows('out/line.csv')
    assert [float(p['t']) for p in points] == [-0.25, 0., 0.5, 1., 1.25]
    losses = [float(p['loss']) for p in points]
    assert np.isfinite(losses).all() and losses[1] != losses[3]
    # what tools/test.py says of the deployed weights
    metrics = testing.test(testing.parse_args(
        [CONFIG, 'run/iter_8.pth', '--work-dir', 'tested', *SMALL]))
    at_one = float(points[3]['accuracy/top1'])
    assert at_one == pytest.approx(metrics['accuracy/top1'], abs=1e-4)
    assert is_png('out/line.png')
    # another run may replace it when asked to, and finds the same losses
    assert run('line', CONFIG, 'run/iter_8.pth:live', 'run/iter_8.pth',
               '--points', '2', '--out', 'out', '--overwrite') == 0
    again = rows('out/line.csv')
    assert list(again[0]) == ['t', 'loss']
    assert [p['loss'] for p in again] == [
        p['loss'] for p in points if p['t'] != '0.5']


def test_the_parts_of_a_checkpoint(folder):
    args = command.parse_args(['plane', CONFIG, 'a.pth', *SMALL])
    cfg = configs.load_config(CONFIG)
    options.merge_options(cfg, args)
    model = build_model(cfg)

    def weights(name):
        return load_weights(name, cfg, model)

    # Until the first period's end, what is deployed is what is trained.
    first, second = (saved(update)['state_dict'] for update in (1, 2))
    mean = weights('run/iter_2.pth:mean')
    live = saved(6)['optimizer']['psw']['live']
    found = weights('run/iter_6.pth:live')
    previous = weights('run/iter_6.pth:previous')
    for index, (name, _) in enumerate(model.named_parameters()):
        torch.testing.assert_close(mean[name],
                                   (first[name] + second[name]) / 2)
        assert torch.equal(found[name], live[f'param.{index}'])
    name = 'backbone.bn1.running_mean'
    torch.testing.assert_close(mean[name], (first[name] + second[name]) / 2)
    average = saved(4)['state_dict']
    for name in average:
        if average[name].is_floating_point():  # not the count of batches
            assert torch.equal(previous[name], average[name])
    assert not torch.equal(found['backbone.conv1.weight'],
                           previous['backbone.conv1.weight'])


def test_a_name_with_a_colon():
    assert split_name('a/b.pth:live') == ('a/b.pth', 'live')
    assert split_name('a/b.pth') == ('a/b.pth', None)
    assert split_name('c:b.pth') == ('c:b.pth', None)


def test_the_planes_of_two_checkpoints(folder, capsys):
    argv = ['plane', CONFIG, 'run/iter_4.pth', 'run/iter_8.pth', '--points',
            '3', '--directions', '2', '--extent', '0.5', '--recalibrate']
    assert run(*argv) == 0
    out = Path('work_dirs/resnet18_digits/loss_plane')
    grid, widths = rows(out / 'plane.csv'), rows(out / 'widths.csv')
    names = ['iter_4.pth', 'iter_8.pth']
    assert [w['checkpoint'] for w in widths] == names
    for width in widths:
        mine = [g for g in grid if g['checkpoint'] == width['checkpoint']]
        assert len(mine) == 9
        center = [g['loss'] for g in mine
                  if float(g['x']) == float(g['y']) == 0]
        np.testing.assert_allclose(float(center[0]), float(width['loss']),
                                   rtol=1e-5)
        assert 0 < float(width['width']) <= 0.5
        assert width['rays'] == '4'
    # one amount for both: the first one's loss
    assert widths[0]['rise'] == widths[1]['rise'] == widths[0]['loss']
    assert is_png(out / 'plane.png')
    # a second run does not replace the first
    before = (out / 'plane.csv').read_bytes()
    capsys.readouterr()
    assert run(*argv, '--seed', '1') == 2
    assert '--overwrite' in capsys.readouterr().err
    assert (out / 'plane.csv').read_bytes() == before


@pytest.mark.parametrize('argv, message', [
    (['line', CONFIG, 'run/iter_8.pth', 'no.pth'], "'no.pth' does not exist"),
    (['line', CONFIG, 'run/iter_2.pth:live', 'run/iter_2.pth'],
     "has no weights 'live', because only with psw.write_back=False"),
    (['line', CONFIG, 'run/iter_8.pth:mean', 'run/iter_8.pth'],
     "beside the deployed ones it holds 'live' and 'previous'"),
    (['line', CONFIG, 'bare.pth:live', 'bare.pth'], 'no averaging state'),
    (['line', CONFIG, 'other.pth', 'other.pth'], 'does not fit the model'),
    (['line', CONFIG, 'run/iter_8.pth', 'run/iter_4.pth', '--begin', '2'],
     '--begin 2.0 is not before --end 1.25'),
    (['line', CONFIG, 'run/iter_8.pth', 'run/iter_4.pth', '--metric', 'mAP'],
     "--metric 'mAP' is not a metric of the config; give one of accuracy/top1"
     ),
    (['line', 'no.py', 'run/iter_8.pth', 'run/iter_4.pth'],
     "config 'no.py' does not exist"),
    (['plane', CONFIG, 'run/iter_8.pth', '--extent', '0'], '--extent 0.0'),
    (['plane', CONFIG, 'run/iter_8.pth', '--rise', '-1'], '--rise -1.0'),
    (['plane', CONFIG, 'run/iter_8.pth', '--out', 'bare.pth'], 'is a file'),
])
def test_one_line(argv, message, folder, capsys):
    torch.save(dict(state_dict=saved(8)['state_dict']), 'bare.pth')
    torch.save(dict(state_dict=dict(a=torch.ones(1))), 'other.pth')
    assert run(*argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not list(Path().rglob('*.csv'))

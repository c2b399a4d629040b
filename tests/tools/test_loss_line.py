"""tools/analysis/loss_line.py, against losses known in closed form."""
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from scripts import script
from torch import nn

from mmpsw import configs, models
from mmpsw.commands import options
from mmpsw.commands import test as testing

lines = script('analysis/loss_line.py')


class Bowl(nn.Module):
    """``sum_j h_j / 2 * ||w_j - c_j||^2`` over the filters j of w."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.center = torch.randn(
            3, 2, 4, generator=generator, dtype=torch.float64)
        self.curvature = torch.tensor([0.5, 2., 7.], dtype=torch.float64)
        self.weight = nn.Parameter(self.center.clone())
        self.bias = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

    @torch.no_grad()
    def loss(self):
        squares = (self.weight - self.center).square().sum((1, 2))
        return (self.curvature * squares).sum().item() / 2


@pytest.fixture
def bowl():
    return Bowl()


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_a_line_is_the_parabola(bowl):
    a, b = state(bowl), state(bowl)
    b['weight'] = b['weight'] + 0.5
    ts = [-0.25, 0., 0.3, 1., 1.25]
    points = lines.line(bowl, a, b, ts, bowl.loss)
    # 8 elements in a filter, each 0.5 t from the centre
    expected = [9.5 / 2 * 8 * (0.5 * t)**2 for t in ts]
    np.testing.assert_allclose(points.loss, expected, atol=1e-14)
    assert list(points.t) == ts


def test_the_ends_are_exact_and_variances_stay_positive():
    generator = torch.Generator().manual_seed(1)
    a = dict(w=torch.randn(99, generator=generator), var=torch.tensor([9.]),
             steps=torch.tensor(1))
    b = dict(w=torch.randn(99, generator=generator), var=torch.tensor([1.]),
             steps=torch.tensor(2))
    at = {t: lines.interpolate(a, b, t, ['w'])
          for t in (-0.25, 0., 0.5, 1., 1.25)}
    assert torch.equal(at[0.]['w'], a['w'])
    assert torch.equal(at[1.]['w'], b['w'])
    torch.testing.assert_close(at[1.25]['w'], 1.25 * b['w'] - 0.25 * a['w'])
    assert [at[t]['var'].item() for t in at] == [9., 9., 5., 1., 1.]
    assert at[1.]['steps'] == 1


def test_barrier_by_hand():
    for curve, expected in [
            # at 0.5 the straight line from 1 to 3 is at 2
            ([(-.25, 99.), (0., 1.), (.5, 2.5), (1., 3.)], 0.5),
            ([(0., 1.), (.5, 0.), (1., 3.), (1.25, 9.)], 0.0)]:
        points = pd.DataFrame(curve, columns=['t', 'loss'])
        assert lines.barrier(points) == expected


class Net(BaseModel):
    """Batch norm, dropout, and a loss that draws, and writes in its input."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.dropout = nn.Dropout(0.5)
        self.draws = False

    def forward(self, x, mode='tensor'):
        assert self.training  # as some detectors' losses need it
        out = self.dropout(self.norm(x))
        if self.draws:
            out = out + torch.rand(())
        x.zero_()
        return dict(loss_a=out.square().mean(), loss_b=out.mean(),
                    acc=torch.tensor(9.))


def batches():
    generator = torch.Generator().manual_seed(0)
    return [dict(x=torch.randn(size, 3, generator=generator) * 2 + 1)
            for size in (5, 9)]


@pytest.mark.parametrize('recalibrated', [False, True])
def test_the_loss_with_saved_and_with_recomputed_statistics(recalibrated):
    net = Net()
    net.norm.running_mean.copy_(torch.tensor([1., 2., 3.]))
    net.norm.running_var.copy_(torch.tensor([4., 9., 1.]))
    data = [batch['x'] for batch in batches()]
    mean, var = net.norm.running_mean.clone(), net.norm.running_var.clone()
    if recalibrated:
        mean = sum(x.mean(0) for x in data) / 2
        var = sum(x.var(0) for x in data) / 2
    out = [(x - mean) / (var + 1e-5).sqrt() for x in data]
    expected = sum((o.square().mean() + o.mean()).item() for o in out) / 2
    loss = lines.training_loss(net, batches(), recalibrated)
    for _ in range(2):  # nothing is used up
        assert loss() == pytest.approx(expected, rel=1e-5)
    net.draws = True  # again the same, whatever was drawn between
    loss = lines.training_loss(net, batches(), recalibrated, seed=3)
    first = loss()
    torch.rand(7)
    assert loss() == first
    assert lines.training_loss(net, batches(), seed=4)() != first


@pytest.fixture
def run(config, folder):
    """Runs the script on the small config."""

    def command(*argv):
        return lines.main([config[0], *argv, '--batches', '2', *config[1]])

    return command


def saved(update):
    return torch.load(f'run/iter_{update}.pth', weights_only=False)


def is_png(path):
    return Path(path).read_bytes()[:4] == b'\x89PNG'


LINE = ('run/iter_8.pth:live', 'run/iter_8.pth')


def test_the_line_from_the_live_weights_to_the_average(run, config, capsys):
    assert run(*LINE, '--points', '3', '--metric', '--out', 'out') == 0
    points = pd.read_csv('out/line.csv')
    assert list(points.t) == [-0.25, 0., 0.5, 1., 1.25]
    assert np.isfinite(points.loss).all() and points.loss[1] != points.loss[3]
    # what tools/test.py says of the deployed weights
    metrics = testing.test(testing.parse_args(
        [config[0], 'run/iter_8.pth', '--work-dir', 'tested', *config[1]]))
    assert points['accuracy/top1'][3] == pytest.approx(
        metrics['accuracy/top1'], abs=1e-4)
    assert is_png('out/line.png')
    assert f'{points.loss[1]:.4g}' in capsys.readouterr().out
    # a second run does not replace the first, unless it is asked to
    assert run(*LINE, '--points', '3', '--out', 'out') == 2
    assert '--overwrite' in capsys.readouterr().err
    assert run(*LINE, '--points', '3', '--out', 'out', '--overwrite') == 0
    again = pd.read_csv('out/line.csv')
    pd.testing.assert_frame_equal(again, points[['t', 'loss']])


def test_a_metric_that_is_missing_at_a_point_is_a_gap(run, monkeypatch):
    """mmdet logs none while nothing is found."""
    evaluate, calls = Evaluator.evaluate, []

    def sometimes(self, size):
        calls.append(size)
        metrics = evaluate(self, size)
        return metrics if len(calls) % 2 == 0 else {}

    monkeypatch.setattr(Evaluator, 'evaluate', sometimes)
    assert run(*LINE, '--points', '3', '--metric', '--out', 'out') == 0
    values = pd.read_csv('out/line.csv')['accuracy/top1']
    assert list(values.isna()) == [True, False, True, False, True]
    assert is_png('out/line.png')
    # none anywhere
    monkeypatch.setattr(Evaluator, 'evaluate', lambda self, size: {})
    assert run(*LINE, '--points', '3', '--metric', '--out', 'none') == 0
    assert list(pd.read_csv('none/line.csv')) == ['t', 'loss']
    assert is_png('none/line.png')


def test_the_parts_of_a_checkpoint(folder, config):
    args = lines.parse_args([config[0], 'a.pth', 'b.pth', *config[1]])
    cfg = configs.load_config(config[0])
    options.merge_options(cfg, args)
    model = models.build_model(cfg)

    def weights(name):
        return lines.load_weights(name, cfg, model)

    # Until the first period's end, what is deployed is what is trained.
    first, second, average = (
        saved(update)['state_dict'] for update in (1, 2, 4))
    mean = weights('run/iter_2.pth:mean')
    live = saved(6)['live_state_dict']
    found = weights('run/iter_6.pth:live')
    previous = weights('run/iter_6.pth:previous')
    for name, _ in model.named_parameters():
        assert torch.equal(found[name].cpu(), live[name])
    for name in average:
        if average[name].is_floating_point():  # not the count of batches
            torch.testing.assert_close(
                mean[name].cpu(), (first[name] + second[name]).cpu() / 2)
            assert torch.equal(previous[name].cpu(), average[name].cpu())
    assert lines.split_name('c:b.pth') == ('c:b.pth', None)


@pytest.mark.parametrize('argv, message', [
    (['run/iter_8.pth', 'no.pth'], "'no.pth' does not exist"),
    (['run/iter_8.pth:mean', 'run/iter_8.pth'],
     "at another time; it holds 'live' and 'previous'"),
    (['bare.pth:live', 'bare.pth'], 'it holds none'),
    (['other.pth', 'other.pth'], 'does not fit the model'),
    (['run/iter_8.pth', 'cut.pth'], 'is cut off'),
    (['nan.pth', 'nan.pth'], 'that are not finite'),
    (['run/iter_8.pth', 'run/iter_4.pth', '--out', 'bare.pth'], 'is a file'),
])
def test_one_line(argv, message, run, capsys):
    weights = saved(8)['state_dict']
    torch.save(dict(state_dict=weights), 'bare.pth')
    Path('cut.pth').write_bytes(Path('bare.pth').read_bytes()[:999])
    torch.save(dict(state_dict=dict(a=torch.ones(1))), 'other.pth')
    weights['head.fc.bias'] = weights['head.fc.bias'] * math.nan
    torch.save(dict(state_dict=weights), 'nan.pth')
    try:
        status = run(*argv)
    except SystemExit as info:  # argparse adds the usage
        status = info.code
    assert status == 2
    *usage, line = capsys.readouterr().err.splitlines()
    assert message in line and (not usage or usage[0].startswith('usage: '))
    assert not list(Path().rglob('*.csv'))

"""tools/analysis/loss_surface.py, against losses known in closed form."""
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

surface = script('analysis/loss_surface.py')


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
    points = surface.line(bowl, a, b, ts, bowl.loss)
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
    at = {t: surface.interpolate(a, b, t, ['w'])
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
        assert surface.barrier(points) == expected


def test_directions_have_the_filters_norms(bowl):
    direction = surface.random_direction(bowl, 3)
    assert list(direction) == ['weight']  # no bias, nothing that is frozen
    for moved, weight in zip(direction['weight'], bowl.center):
        np.testing.assert_allclose(np.linalg.norm(moved.numpy()),
                                   np.linalg.norm(weight.numpy()))
    other = surface.random_direction(bowl, 4)['weight']
    assert not torch.allclose(other[0], direction['weight'][0])
    bowl.weight.data[2] = 0
    assert not surface.random_direction(bowl, 3)['weight'][2].any()


def test_the_loss_of_a_step_along_two_directions(bowl):
    center = state(bowl)
    x, y = [surface.random_direction(bowl, seed) for seed in (0, 1)]
    found = surface.loss_at(bowl, bowl.loss, center, (0.25, x), (-0.5, y))
    moved = (0.25 * x['weight'] - 0.5 * y['weight']).numpy()
    squares = (moved**2).sum((1, 2))
    assert found == pytest.approx((bowl.curvature.numpy() * squares).sum() / 2)
    assert surface.loss_at(bowl, bowl.loss, center) == 0


@pytest.mark.parametrize('rise', [0.01, 0.5, 3.])
def test_the_width_of_a_bowl(bowl, rise):
    rays = [(sense, surface.random_direction(bowl, seed))
            for seed in range(3) for sense in (1, -1)]
    found = surface.width(bowl, bowl.loss, state(bowl), rays, rise, 1.0)
    # at length 1 each filter is moved by its own norm
    squares = bowl.center.square().sum((1, 2))
    at_one = (bowl.curvature * squares).sum().item() / 2
    assert found['width'] == pytest.approx(math.sqrt(rise / at_one), abs=2e-3)
    assert (found['loss'], found['rays'], found['open_rays']) == (0, 6, 0)
    assert found['std'] < 2e-3
    # rays that do not rise are open
    found = surface.width(bowl, bowl.loss, state(bowl), rays, 1e6, 0.5)
    assert (found['width'], found['open_rays']) == (0.5, 6)


@pytest.mark.parametrize('function, expected', [
    (abs, 0.35),
    (lambda r: math.inf if r > 0.35 else 0., 0.35),
    (lambda r: math.nan if r > 0.35 else 0., 0.35),
    (lambda r: math.sin(10 * r), math.asin(0.35) / 10),  # falls again
    (lambda r: 0.2, 1.0),
])
def test_the_first_crossing(function, expected):
    radius = surface.rise_radius(function, 0.35, 1.0)
    assert radius == pytest.approx(expected, abs=2e-3)


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
    loss = surface.training_loss(net, batches(), recalibrated)
    for _ in range(2):  # nothing is used up
        assert loss() == pytest.approx(expected, rel=1e-5)
    net.draws = True  # again the same, whatever was drawn between
    loss = surface.training_loss(net, batches(), recalibrated, seed=3)
    first = loss()
    torch.rand(7)
    assert loss() == first
    assert surface.training_loss(net, batches(), seed=4)() != first


@pytest.fixture
def run(config, folder):
    """Runs a command on the small config."""

    def command(name, *argv):
        return surface.main([name, config[0], *argv, '--batches', '2',
                             *config[1]])

    return command


def saved(update):
    return torch.load(f'run/iter_{update}.pth', weights_only=False)


def is_png(path):
    return Path(path).read_bytes()[:4] == b'\x89PNG'


LINE = ('line', 'run/iter_8.pth:live', 'run/iter_8.pth')


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


def test_a_metric_that_is_missing_at_a_point_is_a_gap(run, monkeypatch,
                                                      capsys):
    """mmdet logs none while nothing is found."""
    evaluate, calls = Evaluator.evaluate, []

    def sometimes(self, size):
        calls.append(size)
        metrics = evaluate(self, size)
        return metrics if len(calls) % 2 == 0 else {}

    monkeypatch.setattr(Evaluator, 'evaluate', sometimes)
    assert run(*LINE, '--points', '3', '--metric', '--out', 'out') == 0
    values = pd.read_csv('out/line.csv')['accuracy/top1']
    # the first call is a look at the names, before the five points
    assert list(values.isna()) == [False, True, False, True, False]
    assert is_png('out/line.png')
    # none anywhere, not even of the given name
    monkeypatch.setattr(Evaluator, 'evaluate', lambda self, size: {})
    assert run(*LINE, '--points', '3', '--metric', 'mAP', '--out', 'none') == 0
    assert list(pd.read_csv('none/line.csv')) == ['t', 'loss']
    assert 'No validation logged such a metric' in capsys.readouterr().out
    assert is_png('none/line.png')


def test_the_parts_of_a_checkpoint(folder, config):
    args = surface.parse_args(['plane', config[0], 'a.pth', *config[1]])
    cfg = configs.load_config(config[0])
    options.merge_options(cfg, args)
    model = models.build_model(cfg)

    def weights(name):
        return surface.load_weights(name, cfg, model)

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
    assert surface.split_name('c:b.pth') == ('c:b.pth', None)


def test_the_planes_of_two_checkpoints(run):
    assert run('plane', 'run/iter_4.pth', 'run/iter_8.pth', '--points', '3',
               '--directions', '2', '--extent', '0.5', '--recalibrate') == 0
    out = Path('work_dirs/resnet18_digits/loss_plane')
    grid = pd.read_csv(out / 'plane.csv')
    widths = pd.read_csv(out / 'widths.csv')
    assert list(widths.checkpoint) == ['iter_4.pth', 'iter_8.pth']
    centers = grid[(grid.x == 0) & (grid.y == 0)]
    np.testing.assert_allclose(centers.loss, widths.loss, rtol=1e-5)
    assert len(grid) == 18 and list(widths.rays) == [4, 4]
    assert widths.width.between(0, 0.5, inclusive='right').all()
    # one amount for both: the first one's loss
    assert list(widths.rise) == [widths.loss[0]] * 2
    assert is_png(out / 'plane.png')


@pytest.mark.parametrize('argv, message', [
    (['line', 'run/iter_8.pth', 'no.pth'], "'no.pth' does not exist"),
    (['line', 'run/iter_8.pth:mean', 'run/iter_8.pth'],
     "at another time; it holds 'live' and 'previous'"),
    (['line', 'bare.pth:live', 'bare.pth'], 'it holds none'),
    (['line', 'other.pth', 'other.pth'], 'does not fit the model'),
    (['line', 'run/iter_8.pth', 'cut.pth'], 'is cut off'),
    (['line', 'nan.pth', 'nan.pth'], 'that are not finite'),
    (['line', 'run/iter_8.pth', 'run/iter_4.pth', '--metric', 'mAP'],
     "--metric 'mAP' is not a metric of the config; give one of accuracy/top1"
     ),
    (['plane', 'run/iter_8.pth', '--out', 'bare.pth'], 'is a file'),
    (['line', 'a.pth', 'b.pth', '--begin', '2'],
     '--begin 2.0 is not before --end 1.25'),
    (['plane', 'a.pth', '--extent', '0'], '0 is not a number > 0'),
    (['plane', 'a.pth', '--rise', '-1'], '-1 is not a number > 0'),
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

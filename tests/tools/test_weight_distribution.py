"""tools/analysis/weight_distribution.py records the samples, and no other."""
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toy
from mmengine.hooks import Hook
from scripts import script

from mmpsw.methods.averaging import Schedule

spreads = script('analysis/weight_distribution.py')


def samples(count, offset=0.):
    generator = torch.Generator().manual_seed(0)
    return [
        dict(
            a=torch.randn(4, 3, generator=generator).double() + offset,
            b=torch.randn(5, generator=generator).double() * 0.01 + offset)
        for _ in range(count)
    ]


def spread_of(taken, **keys):
    spread = spreads.Spread(taken[0], **keys)
    for sample in taken:
        spread.update(list(sample.values()))
    return spread


@pytest.mark.parametrize('count', [1, 2, 50])
@pytest.mark.parametrize('offset', [0., 1e4])  # far away from their spread
def test_welford_is_numpys(count, offset):
    taken = samples(count, offset)
    layers = spread_of(taken).layers()
    assert list(layers.layer) == ['a', 'b']
    assert list(layers['shape']) == ['4x3', '5']
    for layer in layers.itertuples():
        every = np.stack([s[layer.layer].numpy() for s in taken])
        mean, std = every.mean(0), every.std(0)
        assert layer.samples == count
        assert layer.std == pytest.approx(std.mean(), abs=1e-10)
        rms = np.sqrt((mean**2).mean())
        assert layer.rms == pytest.approx(rms)
        assert layer.relative_std == pytest.approx(std.mean() / rms, abs=1e-9)
        shift = np.linalg.norm(mean - every[-1]) / np.linalg.norm(every[-1])
        assert layer.shift == pytest.approx(shift, abs=1e-10)


def test_the_histogram_of_standardised_weights():
    taken = samples(200)
    bins = spread_of(taken, histograms=1).histograms()
    assert set(bins.layer) == {'a'}  # b is a bias
    every = np.stack([s['a'].numpy().ravel() for s in taken])
    standard = (every - every.mean(0)) / every.std(0)
    counts, _ = np.histogram(standard, [*bins['from'], 4])
    np.testing.assert_allclose(
        bins.density, counts / counts.sum() / (bins['to'] - bins['from']))
    still = spread_of([dict(a=torch.ones(3, 3).double())] * 2, histograms=1)
    assert still.histograms().empty
    # weights that stay zero have no relative spread either
    layers = spread_of([dict(a=torch.zeros(3).double())] * 2).layers()
    assert layers['std'][0] == 0
    assert layers[['relative_std', 'shift']].isna().all(axis=None)


@pytest.mark.parametrize('schedule, iteration, periods, stop', [
    (Schedule(4), 0, 2, 8),
    (Schedule(4), 3, 2, 8),
    (Schedule(4), 4, 2, 12),
    (Schedule(4, begin=2, end=12), 0, 4, 12),
    (Schedule(4, total=6), 5, 2, 6),
    (Schedule(4, end=8), 8, 2, None),
    (Schedule(4, begin=20, total=8), 0, 2, None),
])
def test_the_last_iteration_by_hand(schedule, iteration, periods, stop):
    if stop is None:
        with pytest.raises(ValueError, match='no period ends after iteration'):
            spreads.last_iteration(schedule, iteration, periods)
    else:
        assert spreads.last_iteration(schedule, iteration, periods) == stop


class Updates(Hook):
    """All weights right after each update, before they are resampled."""

    def before_train(self, runner):
        self.weights = []
        self.model = runner.model
        runner.optim_wrapper.optimizer.register_step_post_hook(self.note)

    def note(self, *_):
        self.weights.append({
            name: param.detach().double().cpu().numpy().copy()
            for name, param in self.model.named_parameters()})


def record(folder, psw, **keys):
    """A toy run of 12 iterations; its updates, and what was recorded."""
    folder.mkdir(exist_ok=True)
    updates, recorder = Updates(), spreads.Recorder(folder, 9, 2)
    keys.setdefault('train_cfg', dict(by_epoch=True, max_epochs=2))
    runner = toy.runner(folder, psw, hooks=[updates], validate=False,
                        checkpoint=dict(interval=9), **keys)
    runner.register_hook(recorder, priority='LOWEST')
    with suppress(spreads.AllPeriods):
        runner.train()
    return updates.weights, recorder


def check(path, taken):
    """A period's table is that of these samples."""
    layers = pd.read_csv(path)
    assert list(layers.layer) == list(taken[0])
    for layer in layers.itertuples():
        every = np.stack([sample[layer.layer] for sample in taken])
        assert layer.samples == len(taken)
        assert layer.std == pytest.approx(every.std(0).mean(), abs=1e-12)
        shift = np.linalg.norm(every.mean(0) - every[-1]) / np.linalg.norm(
            every[-1])
        assert layer.shift == pytest.approx(shift, abs=1e-10)


@pytest.mark.parametrize('psw, windows', [
    (dict(type='PSWA'), [(0, 6), (6, 12)]),
    (dict(type='PWALKS', last=2), [(4, 6), (10, 12)]),
    (dict(type='PSWM', period=2), [(0, 12)]),
    (dict(type='PSWA', write_back=False, begin=1), [(6, 12)]),
    (dict(type='PSWA', by_epoch=False, period=5, end=10, buffers='keep'),
     [(0, 5), (5, 10)]),
])
def test_the_window_of_each_period(tmp_path, psw, windows):
    weights, recorder = record(tmp_path, psw)
    assert [row['period'] for row in recorder.summary] == [
        f'{psw["type"]}: {stop - start} samples, iterations {start + 1} to '
        f'{stop}' for start, stop in windows]
    for start, stop in windows:
        check(tmp_path / f'iter_{stop}.csv', weights[start:stop])
        assert {path.name for path in tmp_path.glob(f'iter_{stop}[._]*')} >= {
            f'iter_{stop}{end}' for end in
            ('.csv', '.png', '_histograms.csv', '_histograms.png')}


def test_only_what_was_drawn(tmp_path):
    weights, _ = record(tmp_path, dict(
        type='PSWA', sample_prob=0.5, seed=3, period=2))
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.rand((), generator=generator, dtype=torch.float64) < 0.5
             for _ in weights]
    assert 0 < sum(drawn) < len(drawn) == 12
    check(tmp_path / 'iter_12.csv',
          [w for w, taken in zip(weights, drawn) if taken])


def test_updates_of_accumulated_gradients(tmp_path):
    weights, _ = record(tmp_path, dict(type='PSWA'),
                        wrapper=dict(accumulative_counts=2))
    assert len(weights) == 6
    for period in (0, 1):
        check(tmp_path / f'iter_{6 * period + 6}.csv',
              weights[3 * period:3 * period + 3])


def test_the_run_is_the_same_without_it(tmp_path):
    weights, _ = record(tmp_path / 'with', dict(type='PSWM'))
    alone = Updates()
    toy.runner(tmp_path / 'without', dict(type='PSWM'), hooks=[alone],
               train_cfg=dict(by_epoch=True, max_epochs=2),
               checkpoint=dict(interval=9), validate=False).train()
    for one, other in zip(weights, alone.weights, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture
def run(config, folder):
    """Runs the script on the small config, with the settings of the run."""

    def command(*argv, psw='pswa', options=('write_back=False', )):
        return spreads.main([
            config[0], *argv, *(('--with', psw) if psw else ()), *config[1],
            *(f'optim_wrapper.psw.{option}' for option in options)])

    return command


def test_the_next_period_of_a_checkpoint(run, capsys):
    assert run('run/iter_4.pth', '--out', 'out') == 0
    assert '4 samples, iterations 5 to 8' in capsys.readouterr().out
    states = [torch.load(f'run/iter_{update}.pth', weights_only=False)
              for update in (5, 6, 7, 8)]
    layers = pd.read_csv('out/iter_8.csv')
    assert len(layers) == 62 and 'head.fc.bias' in set(layers.layer)
    check('out/iter_8.csv', [
        {name: state['live_state_dict'][name].double().numpy()
         for name in layers.layer} for state in states])
    assert not list(Path('out').rglob('*.pth'))
    assert Path('out/iter_8.png').read_bytes()[:4] == b'\x89PNG'


@pytest.mark.parametrize('argv, windows, message', [
    # from the middle of a period, beyond the end of the run
    (['run/iter_6.pth', '--periods', '2'], [('7', '8'), ('9', '12')], ''),
    (['--periods', '3'], [('1', '4'), ('5', '8')],
     'ended after 2 of 3 periods'),
])
def test_several_periods(argv, windows, message, run, capsys):
    assert run(*argv, '--out', 'out') == 0
    said = capsys.readouterr().out
    assert re.findall(r'iterations (\d+) to (\d+)', said) == windows
    assert message in said


@pytest.mark.parametrize('argv, keys, message', [
    ([], dict(psw=None, options=()), 'has no psw; add --with pswa'),
    (['no.pth'], {}, "'no.pth' does not exist"),
    (['bare.pth'], {}, 'cannot be resumed from'),
    (['--out', 'bare.pth'], {}, 'is a file'),
    (['--out', 'mine'], {}, 'holds the results of an earlier'),
    (['run/iter_8.pth'], dict(options=('write_back=False', 'end=2')),
     'no period ends after iteration 8'),
])
def test_one_line(argv, keys, message, run, capsys):
    torch.save(dict(meta={}, state_dict={}), 'bare.pth')
    Path('mine').mkdir()
    Path('mine/iter_4.csv').write_text('mine')
    assert run(*argv, **keys) == 2
    errors = [line for line in capsys.readouterr().err.splitlines()
              if line.startswith('error: ')]
    assert len(errors) == 1 and message in errors[0]
    assert Path('mine/iter_4.csv').read_text() == 'mine'

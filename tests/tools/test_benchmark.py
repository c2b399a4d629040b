"""tools/benchmark.py counts what a hand counts, and runs from end to end."""
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from mmengine.hooks import EMAHook
from scripts import script
from torch import nn

from mmpsw import configs, models
from mmpsw.engine import PSWHook

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
benchmark = script('benchmark.py')


@pytest.mark.parametrize('call, operations, size', [
    (lambda a, b: a.add_(b), ['add_'], 12),  # reads both, writes one
    (lambda a, b: a.copy_(b), ['copy_'], 8),  # overwrites
    (lambda a, b: a - b, ['sub'], 12),
    (lambda a, b: a.zero_(), ['zero_'], 4),
    (lambda a, b: torch.neg(a, out=b), ['neg'], 8),
    (lambda a, b: a.view(5, 2)[1:].t(), [], 0),
    (lambda a, b: torch.empty_like(a), ['empty_like'], 0),
    (lambda a, b: torch._foreach_mul_([a, b], 2), ['_foreach_mul_'], 16),
    (lambda a, b: a.double(), ['_to_copy'], 12),
])
def test_counts_by_hand(call, operations, size):
    run = partial(call, torch.ones(10), torch.ones(10))
    with benchmark.Counted() as count:
        run()
    assert count.operations == operations
    assert count.bytes == 10 * size


def test_medians_quartiles_and_ratios_by_hand():
    times = pd.DataFrame(dict(a=[1., 3., 2., 4., 5.], b=[2., 9., 6., 4., 5.]))
    a, b = benchmark.timed(times, 'a').itertuples()
    assert (a.name, a.seconds, a.seconds_q1, a.seconds_q3) == ('a', 3, 2, 4)
    assert (a.ratio, a.ratio_q1, a.ratio_q3) == (1, 1, 1)
    assert (b.ratio, b.ratio_q1, b.ratio_q3) == (2, 1, 3)


def test_interleaved_runs_all_in_each_round():
    seen = []
    times = benchmark.interleaved(dict(
        a=(lambda: seen.append('a'), lambda: seen.append('-')),
        b=(lambda: seen.append('b'), lambda: None)), range(5))
    assert list(times) == ['a', 'b'] and len(times) == 5
    rounds = {''.join(seen[i:i + 3]) for i in range(0, 3 * 8, 3)}
    assert rounds == {'-ab', 'b-a'}


def test_costs_by_hand():
    """A convolution of 4 + 1, and a batch norm of 4 times 4, in fp32."""
    model = nn.Sequential(nn.Conv2d(4, 1, 1), nn.BatchNorm2d(4))
    costs = benchmark.sample_costs(model, 2).set_index('name')
    assert set(costs.weights) == {4 + 1 + 4 * 4}
    assert costs.ratio[benchmark.FLAT] == 1
    counted = costs[['operations', 'bytes_per_weight']]
    assert list(counted.loc[benchmark.FLAT]) == [1, 12]
    assert list(counted.loc['flat copy_']) == [1, 8]
    assert list(counted.loc[benchmark.SAMPLE]) == [1, 12]
    # the live weights out, the average in, and the live weights in
    assert list(counted.loc[benchmark.CONTROL]) == [3, 24]
    # one at least for each of the 4 parameters and 2 buffers
    assert counted.operations['mmengine EMA'] >= 6
    assert counted.bytes_per_weight['mmengine SWA'] > 20
    for cost in costs.itertuples():
        assert cost.note == 'not installed' or cost.seconds > 0


def test_sample_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, 'find_spec', lambda package: None)
    argv = ['sample', '--params', '1e3', '--tensors', '10', '--repeats', '2']
    assert benchmark.main(argv) == 0
    table = pd.read_csv('work_dirs/benchmark/sample.csv').set_index('name')
    assert table.index[0] == benchmark.FLAT
    assert table.bytes_per_weight[benchmark.SAMPLE] == 12
    assert table.note['timm ModelEmaV3'] == 'not installed'
    assert benchmark.SAMPLE in capsys.readouterr().out
    assert benchmark.main(argv) == 2
    assert 'earlier run (sample.csv)' in capsys.readouterr().err
    assert benchmark.main([*argv, '--overwrite', '--dtype', 'float64']) == 0
    table = pd.read_csv('work_dirs/benchmark/sample.csv').set_index('name')
    assert table.bytes_per_weight[benchmark.SAMPLE] == 24


@pytest.mark.parametrize('name', ['det/retinanet_r18_digits.py',
                                  'seg/fpn_r18_digits.py',
                                  'cls/resnet18_digits.py'])
def test_a_batch_of_each_framework(name):
    cfg = configs.load_config(CONFIGS / name)
    benchmark.set_input_size(cfg, 64)
    model = models.build_model(cfg)
    batch = benchmark.synthetic_batch(cfg, 2, 64)
    loss, _ = model.parse_losses(models.losses(model, batch))
    assert loss.isfinite() and loss.requires_grad


def test_steps_from_end_to_end(tmp_path):
    assert benchmark.main([
        'step', str(CONFIGS / 'cls/resnet18_digits.py'), '--size', '32',
        '--period', '8', '--repeats', '2', '--out', str(tmp_path),
        '--arms', 'baseline', 'pwalks', 'hadamard+pswm']) == 0
    table = pd.read_csv(tmp_path / 'step.csv')
    assert list(table.name) == ['baseline', 'pwalks', 'hadamard+pswm']
    assert table.ratio[0] == 1 and (table.seconds > 0).all()
    assert table.megabytes.notna().all() == torch.cuda.is_available()


@pytest.mark.parametrize('name', ['det/retinanet_r18_digits.py',
                                  'seg/fpn_r18_digits.py'])
def test_a_step_is_an_iteration_of_the_run(name, tmp_path, monkeypatch):
    """The hooks around it included: PSW's, and a stock one."""
    args = benchmark.parse_args(['step', '--size', '64'])
    cfg = benchmark.arm_config(CONFIGS / name, 'pswa+ema', args)
    hooks = []
    for kind in (PSWHook, EMAHook):
        monkeypatch.setattr(kind, 'after_train_iter', lambda *a, k=kind, **_:
                            hooks.append((k.__name__, a[1].iter)))
    step = benchmark.training_step(
        cfg, benchmark.synthetic_batch(cfg, 1, 64), 8, f'{tmp_path}/run')
    step()
    step()
    assert hooks == [(kind, i) for i in (0, 1)
                     for kind in ('PSWHook', 'EMAHook')]


@pytest.mark.parametrize('argv, message', [
    (['sample', '--params', '3', '--tensors', '4'], '--params 3 cannot fill'),
    (['sample', 'mmdet::nothing'], "mmdet has no config 'nothing'"),
    (['sample', '--out', 'file'], "--out 'file' is a file"),
    (['sample', '--params', '1.5'], '1.5 is not an integer >='),
    (['step', '--period', '7'], '7 is not an integer >='),
    (['step', '--arms', 'pswa+pswm'], "'pswa' and 'pswm' cannot be used"),
])
def test_bad_input_ends_in_one_line(argv, message, tmp_path, monkeypatch,
                                    capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').touch()
    try:
        status = benchmark.main(argv)
    except SystemExit as info:  # argparse adds the usage
        status = info.code
    assert status == 2
    *usage, line = capsys.readouterr().err.splitlines()
    assert message in line and (not usage or usage[0].startswith('usage: '))

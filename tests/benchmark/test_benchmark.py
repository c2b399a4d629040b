"""The benchmark counts what a hand counts, and runs from end to end."""
import csv
from functools import partial

import pytest
import torch
from torch import nn

from mmpsw.benchmark import contenders, fused, sampling
from mmpsw.benchmark.contenders import MissingError
from mmpsw.benchmark.counting import counted, peak_memory
from mmpsw.benchmark.timing import Spread, interleaved, ratios
from mmpsw.commands import benchmark
from mmpsw.methods.averaging import RunningMean

CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(before)


@pytest.mark.parametrize('call, operations, size, allocated', [
    (lambda a, b: a.add_(b), ['add_'], 12, 0),  # reads both, writes one
    (lambda a, b: a.copy_(b), ['copy_'], 8, 0),  # overwrites
    (lambda a, b: a - b, ['sub'], 12, 4),
    (lambda a, b: a.zero_(), ['zero_'], 4, 0),
    (lambda a, b: torch.neg(a, out=b), ['neg'], 8, 0),
    (lambda a, b: a.view(5, 2)[1:].t(), [], 0, 0),
    (lambda a, b: torch.empty_like(a), ['empty_like'], 0, 4),
    (lambda a, b: torch._foreach_mul_([a, b], 2), ['_foreach_mul_'], 16, 0),
    (lambda a, b: a.double(), ['_to_copy'], 12, 8),
])
def test_counts_by_hand(call, operations, size, allocated):
    count = counted(partial(call, torch.ones(10), torch.ones(10)))
    assert count.operations == operations
    assert (count.bytes, count.allocated) == (10 * size, 10 * allocated)


def test_peak_memory_by_hand():

    def call():
        a = torch.ones(1000)
        b = a + a
        del a
        return (b + b).double()  # b, b + b and its conversion: 4 + 4 + 8

    assert peak_memory(call, CPU) == 16_000


def test_spread_and_ratios_by_hand():
    assert Spread.of([4., 1., 2., 3., 5.]) == (3, 2, 4)
    assert ratios([2., 9.], [1., 3.]) == (2.5, 2.25, 2.75)


def test_interleaved_runs_all_in_each_round():
    seen = []
    times = interleaved(
        dict(a=lambda: seen.append('a'), b=lambda: seen.append('b')),
        range(3), CPU, dict(a=lambda: seen.append('-')), warm_up=1)
    assert [len(values) for values in times.values()] == [3, 3]
    joined = ''.join(seen)
    for start in range(0, 12, 3):
        assert joined[start:start + 3] in ('-ab', 'b-a')


def test_costs_by_hand():
    """A convolution of 4 + 1, and a batch norm of 4 times 4, in fp32."""
    model = nn.Sequential(nn.Conv2d(4, 1, 1), nn.BatchNorm2d(4))
    elements = 4 + 1 + 4 * 4
    costs = {
        cost.name: cost
        for cost in sampling.measure(model, 2, lambda items, _: items)
    }
    assert all(cost.elements == elements for cost in costs.values())
    sample = costs[contenders.SAMPLE]
    assert (sample.operations, sample.bytes, sample.memory) == (1, 12, 4)
    flat = costs[contenders.FLAT_LERP]
    assert (flat.operations, flat.bytes, flat.ratio) == (1, 12, (1, 1, 1))
    assert costs[contenders.FLAT_COPY].bytes == 8
    # the live weights out, the average in, and the live weights in
    control = costs[contenders.CONTROL]
    assert (control.operations, control.bytes) == (3, 24)
    # one at least for each of the 4 parameters and 2 buffers
    assert costs['mmengine EMA'].operations >= 6
    assert costs['mmengine SWA'].bytes > 20
    for cost in costs.values():
        assert cost.note == 'not installed' or cost.time.median > 0


def test_a_peer_that_is_missing_is_listed(monkeypatch):

    def missing(model):
        raise MissingError('not installed')

    monkeypatch.setitem(contenders.PEERS, 'timm ModelEmaV3', missing)
    costs = sampling.measure(
        nn.Linear(2, 2), 1, lambda items, _: items,
        [contenders.SAMPLE, 'timm ModelEmaV3'])
    assert [cost.name for cost in costs] == [
        contenders.FLAT_LERP, contenders.FLAT_COPY, contenders.SAMPLE,
        'timm ModelEmaV3'
    ]
    assert (costs[-1].note, costs[-1].time) == ('not installed', None)


def test_made_parameters_have_the_size_that_was_asked_for():
    model = sampling.synthetic(11, 3, torch.bfloat16, CPU)
    assert [p.numel() for p in model] == [4, 4, 3]
    assert all(p.dtype == torch.bfloat16 for p in model)


def rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def test_sample_from_end_to_end(folder, capsys):
    argv = ['sample', '--params', '1e3', '--tensors', '10', '--repeats', '2',
            '--device', 'cpu']
    assert benchmark.main(argv) == 0
    table = rows(folder / 'work_dirs/benchmark/sample.csv')
    assert table[0]['name'] == contenders.FLAT_LERP
    sample = next(r for r in table if r['name'] == contenders.SAMPLE)
    assert (sample['operations'], sample['bytes_per_parameter']) == ('1',
                                                                     '12.0')
    assert contenders.SAMPLE in capsys.readouterr().out
    assert benchmark.main(argv) == 2
    assert 'earlier run (sample.csv)' in capsys.readouterr().err
    assert benchmark.main([*argv, '--overwrite', '--dtype', 'bfloat16']) == 0
    table = rows(folder / 'work_dirs/benchmark/sample.csv')
    sample = next(r for r in table if r['name'] == contenders.SAMPLE)
    assert float(sample['bytes_per_parameter']) == 2 + 8 + 4 + 4


def test_growth_from_end_to_end(folder, capsys):
    assert benchmark.main([
        'growth', '--params', '1e3', '1e15', '--tensors', '2', '4',
        '--repeats', '1', '--device', 'cpu', '--out', 'out'
    ]) == 0
    assert '1e+15 parameters are left out' in capsys.readouterr().out
    sizes = {(r['parameters'], r['tensors'])
             for r in rows(folder / 'out/growth.csv')}
    assert sizes == {('1000', '100'), ('10000000', '2'), ('10000000', '4')}
    assert (folder / 'out/growth.png').read_bytes().startswith(b'\x89PNG')


def test_step_from_end_to_end(folder):
    config = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
    assert benchmark.main([
        'step', config, '--size', '32', '--period', '4', '--repeats', '2',
        '--device', 'cpu', '--out', 'out'
    ]) == 0
    table = rows(folder / 'out/step.csv')
    assert [row['name'] for row in table] == [
        'baseline', 'PSWA', 'PWALKS, last=0.25', 'PSWM', 'EMA of EMAHook',
        'SWA, once a period'
    ]
    assert float(table[0]['ratio_to_baseline_median']) == 1


@pytest.mark.parametrize('argv, message', [
    (['sample', '--params', '3', '--tensors', '4'], '3 parameters cannot'),
    (['sample', 'mmdet::nothing'], "mmdet has no config 'nothing'"),
    (['sample', '--device', 'tpu'], "--device 'tpu' cannot be used"),
    (['step', '--period', '2'], '--period 2 is too short'),
    (['growth', '--params', '1e15'], 'does not fit the memory'),
    (['sample', '--out', 'file'], "--out 'file' is a file"),
])
def test_bad_input_ends_in_one_line(folder, capsys, argv, message):
    (folder / 'file').touch()
    assert benchmark.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    assert message in error


def test_a_number_that_is_none(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(['sample', '--params', '1.5'])
    assert "1.5 is not an integer >= 1" in capsys.readouterr().err


def test_the_fused_update_is_the_update_and_its_sample():
    torch.manual_seed(0)
    params = [torch.randn(5, 3), torch.randn(7)]
    slow = [nn.Parameter(param.clone()) for param in params]
    optimizer = torch.optim.SGD(slow, lr=fused.LR, momentum=fused.MOMENTUM)
    running = RunningMean(slow)
    buffers = [torch.zeros_like(param) for param in params]
    means = [torch.zeros_like(param) for param in params]
    for n in range(1, 5):
        grads = [1e5 * torch.randn_like(param) for param in params]
        for param, grad in zip(slow, grads):
            param.grad = grad.clone()
        optimizer.step()
        running.update()
        fused.updated_and_sampled(params, grads, buffers, means,
                                  torch.tensor(1 / n))
    torch.testing.assert_close(params, [param.detach() for param in slow])
    torch.testing.assert_close(means, running.mean)

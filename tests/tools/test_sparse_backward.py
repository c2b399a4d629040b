"""tools/analysis/sparse_backward.py measures what it says."""
import pandas as pd
import pytest
import torch
from scripts import script
from torch import nn

bench = script('analysis/sparse_backward.py')


@pytest.mark.parametrize('conv', [
    nn.Conv2d(16, 4, 3, stride=2, padding=1, bias=False),
    nn.Conv2d(16, 8, 1, bias=False)])
def test_sparse_matrices_are_convolutions(conv):
    x = torch.randn(2, 16, 7, 7, requires_grad=True)
    out = conv(x)
    grad = torch.randn_like(out) * (torch.rand_like(out) > 0.7)
    expected = torch.autograd.grad(out, (x, conv.weight), grad)
    geometry = (conv.stride, conv.padding, conv.dilation)
    for passed, other in zip((bench.csr_input, bench.csr_weight), expected):
        torch.testing.assert_close(
            passed(grad, x.detach(), conv.weight.detach(), geometry), other,
            rtol=1e-4, atol=1e-5)


def test_layers(tmp_path):
    cfg = tmp_path / 'tiny.py'
    cfg.write_text("model = dict(type='mmpretrain.ResNet', depth=18, "
                   'stem_channels=16, base_channels=16)')
    assert bench.main(['layers', str(cfg), '--size', '64', '--batch-size', '1',
                       '--repeats', '1', '--out', str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / 'layers.csv')
    one = table[(table.inputs == 16) & (table.outputs == 16)]
    # Two dense formats with three passes, two kinds at five shares with two.
    assert len(one) == 2 * 3 + 2 * 5 * 2
    work = one.gigaflops * 1e9 * one.milliseconds / 1e3
    assert work.round().unique() == [2 * 16 * 16 * 16 * 16 * 9]


def test_speedups_by_hand():
    shape = dict(config='a', outputs=4, size=7, kernel=3, stride=1)
    table = pd.DataFrame([
        dict(shape, inputs=inputs, part=part, kind=kind, zeros=zeros,
             milliseconds=time)
        for inputs, kind, zeros, times in (
            (16, 'dense', 0, (9, 4, 6)), (16, 'dense, last', 0, (1, 5, 2)),
            (32, 'dense', 0, (9, 3, 3)), (32, 'dense, last', 0, (9, 3, 5)),
            (16, 'sparse', 0.5, (None, 4, 4)),
            (32, 'sparse', 0.5, (None, 4, 4)))
        for part, time in zip(('forward', 'input', 'weight'), times) if time])
    # The faster ones, 4 + 2 and 3 + 3, against 16.
    assert bench.speedups(table).loc[('a', 'sparse'), 0.5] == 12 / 16


def test_steps(folder, config, tmp_path):
    name, (flag, *options) = config
    # With fewer than 8 channels, last, oneDNN writes beside its memory on a
    # CPU without AVX-512 (its issue 6035).
    options += ['model.backbone.base_channels=8', 'model.head.in_channels=64']
    assert bench.main(['step', name, '--rates', '0.9', '--warm-up', '2',
                       '--repeats', '1', '--out', str(tmp_path), flag,
                       *options]) == 0
    table = pd.read_csv(tmp_path / 'step.csv').set_index('name')
    assert list(table.index) == [
        'baseline', 'baseline, channels last', 'pruned, 0.9',
        'pruned, 0.9, sparse']
    assert table.zeros.isna().tolist() == [True, True, False, False]
    assert 0.3 < table.multiply_adds_saved['pruned, 0.9'] < 0.95

"""tools/analysis/lp_sgd_sparsity.py: from v, what the weights have."""
import pandas as pd
import pytest
import torch
from scripts import script

from mmpsw.commands import train
from mmpsw.methods.sparsity import hoyer

sparsity = script('analysis/lp_sgd_sparsity.py')


def test_it_is_the_sparsity_of_the_saved_weights(config, folder, capsys):
    path, small = config
    for arm in ('lp_sgd_dense:p=[1.1,1.5]', 'baseline'):
        assert train.main([path, '--with', arm, '--work-dir', arm[:8],
                           *small]) == 0
    assert sparsity.main(['lp_sgd_d/epoch_2.pth', '--out', 'found']) == 0
    weights = torch.load('lp_sgd_d/epoch_2.pth',
                         weights_only=False)['state_dict']
    first, *others = (hoyer(weights[name]) for name in weights
                      if 'conv' in name or 'downsample.0' in name)
    found = pd.read_csv('found/hoyer.csv').set_index('p')
    assert found['mean'][1.1] == pytest.approx(first, abs=1e-4)
    assert found['layers'][1.5] == len(others)
    for name, expected in (('mean', sum(others) / len(others)),
                           ('min', min(others)), ('max', max(others))):
        assert found[name][1.5] == pytest.approx(expected, abs=1e-4)
    assert sparsity.main(['baseline/epoch_2.pth', '--out', 'no']) == 2
    assert 'give those of runs --with lp_sgd' in capsys.readouterr().err

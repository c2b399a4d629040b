"""tools/analysis/hyperspherical_energy.py: what OPT keeps, others change."""
import pandas as pd
from scripts import script

energy = script('analysis/hyperspherical_energy.py')


def test_orthogonal_maps_keep_the_energy(config, folder, capsys):
    path, small = config
    assert energy.main([path, '--arms', 'baseline', 'orthogonal', '--out',
                        'found', *small]) == 0
    found = pd.read_csv('found/energy.csv', index_col=['arm', 'layer'])
    change = found.change.abs().groupby('arm').max()
    assert change['baseline'] > 1e-3 and change['orthogonal'] < 1e-5
    before = found.before.unstack('arm')
    assert (before.baseline / before.orthogonal - 1).abs().max() < 1e-5
    errors = pd.read_csv('found/errors.csv', index_col=['arm', 'validation'])
    assert set(errors.index) == {('orthogonal', 0), ('orthogonal', 1)}
    assert len(errors.columns) == len(before)
    assert 0 < errors.max(axis=None) < 1e-5
    assert 'largest change of energy' in capsys.readouterr().out
    # A second run does not replace the first.
    assert energy.main([path, '--out', 'found']) == 2

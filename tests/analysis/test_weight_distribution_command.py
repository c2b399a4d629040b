"""tools/analysis/weight_distribution.py on a tiny training."""
import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from mmpsw.commands import weight_distribution as command
from mmpsw.commands.weight_distribution import period_ends
from mmpsw.methods.averaging import Schedule

CONFIG = str(
    Path(__file__).resolve().parents[2] / 'configs/cls/resnet18_digits.py')
SMALL = [
    '--cfg-options', 'model.backbone.stem_channels=4',
    'model.backbone.base_channels=4', 'model.head.in_channels=32',
    'train_dataloader.batch_size=4', 'train_dataloader.dataset.indices=16',
    'train_cfg.max_epochs=2'
]
CONTROL = ['--psw', 'pswa', *SMALL, 'optim_wrapper.psw.write_back=False']


def run(*argv):
    return command.run(command.parse_args([*map(str, argv)]))


def test_from_the_start_it_is_the_trainings_own_samples(folder):
    period, = run(CONFIG, '--out', 'out', *CONTROL)
    states = [
        torch.load(f'run/iter_{update}.pth', weights_only=False)
        for update in (1, 2, 3, 4)
    ]
    # Only after the first period the live weights are in a place of their own.
    live = [state['state_dict'] for state in states[:3]]
    last = states[3]['optimizer']['psw']['live']
    names = [layer.name for layer in period.layers]
    live.append({name: last[f'param.{i}'] for i, name in enumerate(names)})
    assert len(names) == 62 and 'head.fc.bias' in names
    with open('out/iter_4.csv', newline='') as file:
        rows = {row['layer']: row for row in csv.DictReader(file)}
    assert list(rows) == names
    for name, row in rows.items():
        every = np.stack(
            [state[name].detach().double().numpy() for state in live])
        mean, std = every.mean(0), every.std(0)
        assert float(row['std']) == pytest.approx(std.mean(), abs=1e-12)
        shift = np.linalg.norm(mean - every[-1]) / np.linalg.norm(every[-1])
        assert float(row['shift']) == pytest.approx(shift, abs=1e-10)
    assert not list(Path('out').rglob('*.pth'))
    assert Path('out/iter_4.png').read_bytes()[:4] == b'\x89PNG'


def test_from_the_middle_of_a_period(folder):
    # its rest; then a whole one, behind the end of the training
    periods = run(CONFIG, 'run/iter_6.pth', '--periods', '2', '--out', 'rest',
                  *CONTROL)
    assert [(p.first, p.last) for p in periods] == [(7, 8), (9, 12)]
    assert not list(Path('rest').rglob('*.pth'))


def test_a_training_with_fewer_periods(folder, capsys):
    periods = run(CONFIG, '--periods', '3', '--out', 'out', *CONTROL)
    assert [(p.first, p.last) for p in periods] == [(1, 4), (5, 8)]
    assert 'ended after 2 of 3 periods' in capsys.readouterr().out


def test_period_ends_by_hand():
    assert period_ends(Schedule(4), 0, 2) == [4, 8]
    assert period_ends(Schedule(4), 3, 2) == [4, 8]
    assert period_ends(Schedule(4), 4, 2) == [8, 12]
    assert period_ends(Schedule(4, begin=2, end=12), 0, 4) == [6, 10, 12]
    assert period_ends(Schedule(4, total=6), 5, 2) == [6]
    assert period_ends(Schedule(4, end=8), 8, 2) == []
    assert period_ends(Schedule(4, begin=20, total=8), 0, 2) == []


@pytest.mark.parametrize('argv, message', [
    (['--periods', '0'], '--periods: 0 is not an integer >= 1'),
    (['--histograms', '-1'], '--histograms: -1 is not an integer >= 0'),
])
def test_numbers_that_are_none(argv, message, capsys):
    with pytest.raises(SystemExit):
        command.main([CONFIG, *argv])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('argv, message', [
    ([CONFIG, *SMALL], 'has no psw; add --psw pswa'),
    ([CONFIG, 'no.pth', *CONTROL], "'no.pth' does not exist"),
    ([CONFIG, 'bare.pth', *CONTROL], "cannot train on from 'bare.pth'"),
    ([CONFIG, '--out', 'bare.pth', *CONTROL], 'is a file'),
    ([CONFIG, '--out', 'mine', *CONTROL], 'holds the results of an earlier'),
    ([CONFIG, 'run/iter_8.pth', '--psw', 'pswm', *SMALL],
     'resume with the same settings'),
    ([CONFIG, 'run/iter_8.pth', *CONTROL, 'optim_wrapper.psw.end=2',
      'optim_wrapper.psw.restart=True'], 'no period ends after iteration 8'),
    ([CONFIG, *CONTROL, 'optim_wrapper.psw.begin=5'],
     'no period ends after iteration 0'),
])
def test_one_line(argv, message, folder, capsys):
    torch.save(dict(meta={}, state_dict={}), 'bare.pth')
    Path('mine').mkdir()
    Path('mine/iter_4.csv').write_text('mine')
    assert command.main(argv) == 2
    errors = [line for line in capsys.readouterr().err.splitlines()
              if line.startswith('error: ')]
    assert len(errors) == 1 and message in errors[0]
    assert Path('mine/iter_4.csv').read_text() == 'mine'

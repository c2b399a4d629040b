"""tools/benchmark.py: its medians by hand, its steps from end to end."""
from pathlib import Path

import pandas as pd
import pytest
import torch
from mmengine.hooks import EMAHook
from scripts import script

from mmpsw import configs, models
from mmpsw.engine import PSWHook

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
benchmark = script('benchmark.py')


def test_medians_quartiles_and_ratios_by_hand():
    times = pd.DataFrame(dict(a=[1., 3., 2., 4., 5.], b=[2., 9., 6., 4., 5.]))
    a, b = benchmark.timed(times, 'a').itertuples()
    assert (a.name, a.seconds, a.seconds_q1, a.seconds_q3) == ('a', 3, 2, 4)
    assert (a.ratio, a.ratio_q1, a.ratio_q3) == (1, 1, 1)
    assert (b.ratio, b.ratio_q1, b.ratio_q3) == (2, 1, 3)


def test_interleaved_runs_all_in_each_round():
    seen = []
    times = benchmark.interleaved(dict(
        a=lambda: seen.append('a'), b=lambda: seen.append('b')), range(5))
    assert list(times) == ['a', 'b'] and len(times) == 5
    rounds = {''.join(seen[i:i + 2]) for i in range(0, 2 * 8, 2)}
    assert rounds == {'ab', 'ba'}


@pytest.mark.parametrize('name', ['study/retinanet_r18_digits.py',
                                  'study/fpn_r18_digits.py',
                                  'study/resnet18_digits.py'])
def test_a_batch_of_each_framework(name):
    cfg = configs.load_config(CONFIGS / name)
    benchmark.set_input_size(cfg, 64)
    model = models.build_model(cfg)
    batch = benchmark.synthetic_batch(cfg, 2, 64)
    loss, _ = model.parse_losses(models.losses(model, batch))
    assert loss.isfinite() and loss.requires_grad


def test_steps_from_end_to_end(tmp_path):
    assert benchmark.main([
        'step', str(CONFIGS / 'study/resnet18_digits.py'), '--size', '32',
        '--period', '8', '--repeats', '2', '--out', str(tmp_path),
        '--arms', 'baseline', 'pwalks', 'hadamard+pswm']) == 0
    table = pd.read_csv(tmp_path / 'step.csv')
    assert list(table.name) == ['baseline', 'pwalks', 'hadamard+pswm']
    assert table.ratio[0] == 1 and (table.seconds > 0).all()
    assert table.megabytes.notna().all() == torch.cuda.is_available()


@pytest.mark.parametrize('name', ['study/retinanet_r18_digits.py',
                                  'study/fpn_r18_digits.py'])
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
    (['step', 'mmdet::nothing'], "mmdet has no config 'nothing'"),
    (['step', str(CONFIGS / 'study/resnet18_digits.py'), '--out', 'file'],
     "--out 'file' is a file"),
    (['step', '--size', '1.5'], '1.5 is not an integer >='),
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

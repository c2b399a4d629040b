"""The Hook: it records the samples that the averaging takes, and no other."""
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from mmengine.hooks import Hook

from mmpsw.analysis import WeightDistributionHook


class Updates(Hook):
    """All weights right after each update, before they are resampled."""

    def before_train(self, runner):
        self.weights = []
        self.written = {}
        runner.optim_wrapper.optimizer.register_step_post_hook(self.note)
        self.model = runner.model

    def note(self, *_):
        self.weights.append(self.flat())

    def flat(self):
        return {name: param.detach().double().numpy().copy()
                for name, param in self.model.named_parameters()}

    def after_train_iter(self, runner, *args, **kwargs):
        self.written[runner.iter + 1] = self.flat()


def train(folder, psw, hooks, **keys):
    keys.setdefault('train_cfg', dict(by_epoch=True, max_epochs=2))
    toy.runner(folder, psw, hooks=hooks, validate=False,
               checkpoint=dict(interval=9), **keys).train()


def record(folder, psw, histograms=0, **keys):
    updates = Updates()
    hook = WeightDistributionHook(str(folder / 'out'), histograms)
    train(folder, psw, [updates, hook], **keys)
    return updates, hook


def check(period, samples):
    assert [x.name for x in period.layers] == list(samples[0])
    for layer in period.layers:
        every = np.stack([sample[layer.name] for sample in samples])
        assert layer.samples == len(samples)
        assert layer.std == pytest.approx(every.std(0).mean(), abs=1e-12)


@pytest.mark.parametrize('psw, windows', [
    (dict(type='PSWA'), [(0, 6), (6, 12)]),
    (dict(type='PWALKS', last=2), [(4, 6), (10, 12)]),
    (dict(type='PSWM', period=2), [(0, 12)]),
    (dict(type='PSWA', write_back=False, begin=1), [(6, 12)]),
    (dict(type='PSWA', by_epoch=False, period=5, end=10, buffers='keep'),
     [(0, 5), (5, 10)]),
])
def test_the_window_of_each_period(tmp_path, psw, windows):
    updates, hook = record(tmp_path, psw)
    assert [(p.first, p.last) for p in hook.periods] == [
        (start + 1, stop) for start, stop in windows]
    for period, (start, stop) in zip(hook.periods, windows):
        assert period.technique == psw['type']
        check(period, updates.weights[start:stop])


def test_only_what_was_drawn(tmp_path):
    psw = dict(type='PSWA', sample_prob=0.5, seed=3, period=2)
    updates, hook = record(tmp_path, psw)
    generator = torch.Generator().manual_seed(3)
    drawn = [
        torch.rand((), generator=generator, dtype=torch.float64).item() < 0.5
        for _ in updates.weights
    ]
    assert 0 < sum(drawn) < len(drawn) == 12
    samples = [w for w, taken in zip(updates.weights, drawn) if taken]
    check(hook.periods[0], samples)
    # and their mean is what was written back
    for name, mean in updates.written[12].items():
        np.testing.assert_allclose(
            mean, np.mean([s[name] for s in samples], 0), rtol=1e-5,
            atol=1e-7)


def test_updates_of_accumulated_gradients(tmp_path):
    updates, hook = record(tmp_path, dict(type='PSWA'),
                           wrapper=dict(accumulative_counts=2))
    assert len(updates.weights) == 6 and len(hook.periods) == 2
    for number, period in enumerate(hook.periods):
        check(period, updates.weights[3 * number:3 * number + 3])


def test_the_training_is_the_same_without_it(tmp_path):
    updates, _ = record(tmp_path / 'with', dict(type='PSWM'))
    alone = Updates()
    train(tmp_path / 'without', dict(type='PSWM'), [alone])
    for one, other in zip(updates.weights, alone.weights, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_what_it_writes(tmp_path):
    _, hook = record(tmp_path, dict(type='PSWA'), histograms=2)
    out = tmp_path / 'out'
    assert {path.name for path in out.iterdir()} == {
        f'iter_{update}{end}' for update in (6, 12)
        for end in ('.csv', '.png', '_histograms.csv', '_histograms.png')}
    with open(out / 'iter_12.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['layer'] for row in rows] == [
        'net.0.weight', 'net.0.bias', 'net.1.weight', 'net.1.bias',
        'net.3.weight', 'net.3.bias']
    assert rows[0]['shape'] == '8x4' and rows[0]['samples'] == '6'
    assert float(rows[0]['std']) == hook.periods[1].layers[0].std
    with open(out / 'iter_12_histograms.csv', newline='') as file:
        layers = {row['layer'] for row in csv.DictReader(file)}
    assert layers == {'net.0.weight', 'net.3.weight'}


def test_it_writes_beside_the_log(tmp_path):
    train(tmp_path, dict(type='PSWA', period=2),
          [dict(type='mmpsw.WeightDistributionHook', histograms=0)])
    found, = tmp_path.glob('*/weight_distribution/*.csv')
    assert found.name == 'iter_12.csv'
    assert list(found.parents[1].glob('*.log'))


def test_it_imports_itself():
    script = ("from mmengine.registry import HOOKS\n"
              "hook = HOOKS.build(dict(type='mmpsw.WeightDistributionHook'))\n"
              "import sys\n"
              "assert type(hook).__name__ == 'WeightDistributionHook'\n"
              "assert 'matplotlib' not in sys.modules")
    subprocess.run([sys.executable, '-c', script], check=True,
                   cwd=Path(__file__).resolve().parents[2])


def test_it_needs_something_to_record(tmp_path):
    with pytest.raises(ValueError, match='needs a PSWOptimWrapper'):
        record(tmp_path, None)
    with pytest.raises(ValueError, match='histograms=-1'):
        WeightDistributionHook(histograms=-1)

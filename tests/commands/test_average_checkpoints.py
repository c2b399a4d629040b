"""tools/average_checkpoints.py: the numbers, the order, the refusals."""
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from mmpsw.commands import average_checkpoints as command

CONFIG = '''
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='RowsForTests'),
    collate_fn=dict(type='default_collate'))
model = dict(type='NormForTests')
'''


def save(path, weight, steps=0, **others):
    """A checkpoint as mmengine saves it, beside its weights."""
    torch.save(dict(
        meta=dict(epoch=1, dataset_meta=dict(classes=('a', 'b'))),
        message_hub=dict(loss=HistoryBuffer(np.ones(2), np.ones(2))),
        optimizer=dict(state={}),
        state_dict=dict(weight=torch.as_tensor(weight),
                        steps=torch.tensor(steps), **others)), path)


def mean(*argv):
    """Runs the command into out.pth; returns what it wrote."""
    assert command.main([*map(str, argv), '--out', 'out.pth']) == 0
    return torch.load('out.pth', weights_only=True)


def refusal(capsys, *argv):
    assert command.main([*map(str, argv)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: ')
    return lines[0]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_mean_of_many_is_the_direct_mean():
    values = torch.randn(
        7, 5, 3, generator=torch.Generator().manual_seed(0)) * 100
    for index, value in enumerate(values, start=1):
        save(f'epoch_{index}.pth', value, steps=index)
    result = mean('.')
    weight = result['state_dict']['weight']
    direct = np.mean(values.numpy().astype(np.float64), axis=0)
    assert weight.dtype == torch.float32
    np.testing.assert_array_equal(weight.numpy(), direct.astype(np.float32))
    assert result.keys() == {'meta', 'state_dict'}
    assert result['meta'] == dict(
        dataset_meta=dict(classes=('a', 'b')),
        sources=[f'epoch_{index}.pth' for index in range(1, 8)],
        count=7)


@pytest.mark.parametrize('beside', [
    dict(ema_state_dict={}), dict(psw={}), dict(optimizer=dict(psw={})),
    dict(meta=dict(count=3))])
def test_whoever_averages_averages_is_told(beside, capsys):
    save('epoch_1.pth', [1.])
    save('epoch_2.pth', [3.])
    mean('epoch_1.pth', 'epoch_2.pth')
    assert 'mean of averages' not in capsys.readouterr().out
    held = torch.load('epoch_2.pth', weights_only=False)
    torch.save({**held, **beside}, 'epoch_2.pth')
    mean('epoch_1.pth', 'epoch_2.pth', '--overwrite')
    assert ('epoch_2.pth: averages already, so that this is a mean of '
            'averages') in capsys.readouterr().out


def test_what_is_no_file_is_not_replaced(capsys):
    """As root it replaced /dev/full by a checkpoint."""
    save('epoch_1.pth', [1.])
    os.mkfifo('pipe')
    line = refusal(capsys, 'epoch_1.pth', '--out', 'pipe', '--overwrite')
    assert "--out 'pipe' is no file" in line
    assert stat.S_ISFIFO(os.stat('pipe').st_mode)


def test_the_last_ones_by_number_not_by_name(folder):
    for epoch in (2, 9, 10, 11):
        save(f'epoch_{epoch}.pth', [float(epoch)], steps=epoch)
    save('best_epoch_2.pth', [1e9])
    state_dict = mean(folder, '--last', '2')['state_dict']
    assert state_dict['weight'].tolist() == [10.5]
    assert state_dict['steps'].item() == 11  # counters are the last one's


def test_half_precision_is_summed_in_full():
    # 256 + 1 is 256 in bfloat16, whose mean would be 64.5.
    for index, value in enumerate([256., 1., 1., 2.], start=1):
        save(f'iter_{index}.pth', torch.tensor([value]).bfloat16())
    weight = mean('.')['state_dict']['weight']
    assert weight.dtype == torch.bfloat16 and weight.item() == 65.


def test_named_files_keep_their_order_without_numbers():
    save('b.pth', [1.], steps=1)
    save('a.pth', [3.], steps=2)
    result = mean('b.pth', 'a.pth')
    assert result['state_dict']['weight'].tolist() == [2.]
    assert result['state_dict']['steps'].item() == 2
    assert result['meta']['sources'] == ['b.pth', 'a.pth']


def test_a_buffer_that_masks_is_the_last_ones():
    for index, seen in enumerate([torch.inf, 2.], start=1):
        save(f'epoch_{index}.pth', [float(index)],
             mask=torch.tensor([0., -torch.inf]), lowest=torch.tensor(seen))
    state_dict = mean('.')['state_dict']
    assert state_dict['weight'].tolist() == [1.5]
    assert state_dict['mask'].tolist() == [0., -torch.inf]
    assert state_dict['lowest'].item() == 2.


def test_an_existing_file_stays_unless_asked_for(capsys):
    save('a.pth', [1.])
    Path('out.pth').write_bytes(b'mine')
    assert '--overwrite' in refusal(capsys, 'a.pth', '--out', 'out.pth')
    assert Path('out.pth').read_bytes() == b'mine'
    assert mean('a.pth', '--overwrite')['meta']['count'] == 1
    assert not list(Path().glob('.*'))


@pytest.mark.parametrize('argv, message', [
    (['no'], "checkpoint 'no' does not exist"),
    (['.', '--last', '3'], '--last 3 is not possible with 2 checkpoints'),
    (['epoch_1.pth', 'more.pth'], "'more.pth' has 'bias'"),
    (['more.pth', 'epoch_1.pth'], "'epoch_1.pth' lacks 'bias'"),
    (['epoch_1.pth', 'wide.pth'], "'weight' in shape (2,)"),
    (['epoch_1.pth', 'nan.pth'], 'not finite'),
    (['epoch_1.pth', 'inf.pth'], "values in 'weight' that are not finite"),
    (['nan_buffer.pth'], "values in 'running_var' that are not finite"),
    (['text.pth'], "'text.pth' is not loaded, because it is no checkpoint"),
    (['list.pth'], "'list.pth' holds no weights, but a list"),
    (['deep.pth'], "'deep.pth' holds no weights, but 'model', 'epoch'"),
    (['empty'], 'neither epoch_*.pth'),
    (['mixed'], 'both epoch_*.pth'),
    (['.', '--recalibrate', 'no.py'], "config 'no.py' does not exist"),
    (['.', '--weights', 'live'], "has no 'live' weights beside its"),
])
def test_refusals_write_nothing(argv, message, capsys):
    for name in ('empty', 'mixed'):
        Path(name).mkdir()
    for name, weight in {
            'epoch_1': [1.], 'epoch_2': [1.], 'wide': [1., 2.],
            'nan': [torch.nan], 'inf': [torch.inf],
            'mixed/epoch_1': [1.], 'mixed/iter_1': [1.]}.items():
        save(f'{name}.pth', weight)
    save('more.pth', [1.], bias=torch.ones(1))
    save('nan_buffer.pth', [1.], running_var=torch.tensor([torch.nan]))
    Path('text.pth').write_text('no checkpoint')
    torch.save([1], 'list.pth')
    torch.save(dict(model=dict(w=torch.ones(1)), epoch=1), 'deep.pth')
    assert message in refusal(capsys, *argv, '--out', 'out.pth')
    assert not Path('out.pth').exists()


class Rows(torch.utils.data.Dataset):
    """24 rows of three numbers, always the same."""

    rows = torch.randn(24, 3, generator=torch.Generator().manual_seed(1)) + 5

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return dict(inputs=self.rows[index])


@pytest.fixture
def registered():
    from mmengine.model import BaseModel
    from mmengine.registry import DATASETS, MODELS

    class NormForTests(BaseModel):

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, inputs, mode):
            return dict(loss=self.norm(inputs).sum())

    DATASETS.register_module('RowsForTests', module=Rows, force=True)
    MODELS.register_module('NormForTests', module=NormForTests, force=True)


def test_batch_norm_is_recalibrated(registered):
    Path('config.py').write_text(CONFIG)
    norm = nn.BatchNorm1d(3)
    for index in (1, 2):
        state = {f'norm.{k}': v for k, v in norm.state_dict().items()}
        torch.save(dict(meta={}, state_dict=state), f'epoch_{index}.pth')
    result = mean('.', '--recalibrate', 'config.py', '--batches', '3')
    batches = Rows.rows[:12].numpy().reshape(3, 4, 3)
    torch.testing.assert_close(
        result['state_dict']['norm.running_mean'],
        torch.from_numpy(batches.mean(1).mean(0)))
    torch.testing.assert_close(
        result['state_dict']['norm.running_var'],
        torch.from_numpy(batches.var(1, ddof=1).mean(0)))


SEARCH = '''
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='RowsForTests'),
    collate_fn=dict(type='default_collate'))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='NearThreeForTests')
val_cfg = test_cfg = dict()
model = dict(type='OneWeightForTests')
custom_hooks = [dict(type='EMAHook')]
'''


@pytest.fixture
def near_three():
    """The metric is 100 minus the only weight's distance from 3."""
    from mmengine.evaluator import BaseMetric
    from mmengine.model import BaseModel
    from mmengine.registry import DATASETS, METRICS, MODELS

    class OneWeightForTests(BaseModel):

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, inputs, mode):
            return [dict(weight=self.weight.item())] * len(inputs)

    class NearThreeForTests(BaseMetric):
        default_prefix = 'accuracy'

        def process(self, data_batch, data_samples):
            self.results += [row['weight'] for row in data_samples]

        def compute_metrics(self, results):
            assert len(results) == len(Rows.rows)
            return dict(top1=100 - abs(results[0] - 3))

    for registry, module in ((DATASETS, Rows), (MODELS, OneWeightForTests),
                             (METRICS, NearThreeForTests)):
        name = {Rows: 'RowsForTests'}.get(module, module.__name__)
        registry.register_module(name, module=module, force=True)
    Path('config.py').write_text(SEARCH)


def test_the_window_whose_mean_validates_best(near_three, capsys):
    """The last 1, 2, 4 and 6 have the means 6, 3, 6 and 5.5."""
    for epoch, weight in enumerate((0., 9., 9., 9., 0., 6.), start=1):
        torch.save(dict(meta={}, state_dict=dict(
            weight=torch.tensor([weight]))), f'epoch_{epoch}.pth')
    result = mean('.', '--search', 'config.py')
    assert result['state_dict']['weight'].item() == 3.
    assert result['meta']['sources'] == ['epoch_5.pth', 'epoch_6.pth']
    said = capsys.readouterr().out
    for line in ('the last 1: accuracy/top1 97.0000\n',
                 'the last 2: accuracy/top1 100.0000, the best\n',
                 'the last 4: accuracy/top1 97.0000\n',
                 'the last 6: accuracy/top1 97.5000\n',
                 'the 24 images of val_dataloader, which are those of '
                 'test_dataloader too'):
        assert line in said
    assert Path('out.png').stat().st_size > 1000
    picture = Path('out.png').read_bytes()
    Path('out.pth').unlink()
    assert 'out.png' in refusal(
        capsys, '.', '--search', 'config.py', '--out', 'out.pth')
    assert Path('out.png').read_bytes() == picture


@pytest.mark.parametrize('change, message', [
    ('val_evaluator = None', 'has no val_evaluator'),
    ("model = dict(type='NormForTests')", 'do not fit the model')])
def test_a_search_that_cannot_work(change, message, near_three, registered,
                                   capsys):
    Path('config.py').write_text(SEARCH + change)
    save('epoch_1.pth', torch.ones(1))
    assert message in refusal(
        capsys, '.', '--search', 'config.py', '--out', 'out.pth')
    assert not list(Path().glob('out.*'))

"""What rides along is what runs of their own would be, and changes none."""
import json

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import ValLoop
from mmengine.structures import BaseDataElement
from reference import assert_equal
from toy import FUSED, Error, Overflow, Points, Toy, runner, trained

from mmpsw.engine import RideAlongHook
from mmpsw.engine.ride_along import passenger

EPOCHS = dict(train_cfg=dict(by_epoch=True, max_epochs=4))
ITERS = dict(
    sampler='InfiniteSampler',
    train_cfg=dict(by_epoch=False, max_iters=20, val_interval=5))
AVERAGES = {
    'psw': dict(psw=dict(type='PSWA', write_back=False)),
    'linear': dict(psw=dict(
        type='PSWA', write_back=False, weighting='linear')),
    'drawn': dict(psw=dict(
        type='PWALKS', write_back=False, last=0.7, sample_prob=0.5)),
    'ema': dict(custom_hooks=[
        dict(type='EMAHook', momentum=0.1, update_buffers=True)]),
    'swa': dict(custom_hooks=[
        dict(type='mmpsw.EpochAverageHook', begin=0.5, update_buffers=True,
             ema_type='StochasticWeightAverage')]),
    'lawa': dict(custom_hooks=[
        dict(type='mmpsw.EpochAverageHook', last=2,
             ema_type='mmpsw.LatestWeightAverage')]),
}


def hook(folder):
    return dict(type='mmpsw.RideAlongHook', averages=AVERAGES,
                folders={name: str(folder / name) for name in AVERAGES})


def logged(folder):
    """The metrics of a work directory's validations, in order."""
    files = sorted(folder.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for path in files
             for line in path.read_text().splitlines()]
    return [line['error'] for line in lines if 'iter' not in line]


def own_run(folder, settings, beside, **keys):
    hooks = [*settings.get('custom_hooks', ()), *beside]
    return trained(folder, psw=settings.get('psw'), hooks=hooks, **keys)


MASKS = dict(type='mmpsw.SparsityHook', target=0.6, begin=0.25, end=0.75,
             interval=3)


class NewBuffers(Hook):
    """Gives batch norm new tensors in each epoch, as PreciseBNHook does."""

    def before_train_epoch(self, runner):
        norm = runner.model.net[1]
        norm.running_mean = norm.running_mean + 1
        norm.running_var = norm.running_var * 2


@pytest.mark.parametrize('keys, beside', [
    (EPOCHS, []), (ITERS, []), (EPOCHS, [MASKS]), (ITERS, [MASKS]),
    ({**EPOCHS, **FUSED}, [Overflow()]),
    ({**EPOCHS, 'wrapper': dict(accumulative_counts=2)}, []),
    (EPOCHS, [NewBuffers()])])
def test_they_equal_runs_of_their_own(tmp_path, keys, beside):
    """With masks, updates that did not happen, and new buffers, too."""
    trained(tmp_path / 'all', hooks=[hook(tmp_path), *beside], **keys)
    for name, settings in AVERAGES.items():
        own = own_run(tmp_path / 'own' / name, settings, beside, **keys)
        own_values = logged(tmp_path / 'own' / name)
        assert len(own_values) == 4
        assert logged(tmp_path / name) == own_values, name
        saved = tmp_path / name / (
            'iter_20.pth' if keys is ITERS else 'epoch_4.pth')
        newest = tmp_path / 'own' / name / f'iter_{own.iter}.pth'
        assert_equal(*(torch.load(path, weights_only=False)['state_dict']
                       for path in (saved, newest)))


@pytest.mark.parametrize('host', [
    dict(psw=dict(type='PSWA', write_back=False)),
    dict(hooks=[dict(type='EMAHook', momentum=0.3)])])
def test_what_is_saved_is_theirs_whatever_the_run_saves(tmp_path, host):
    """These hosts train as the baseline does."""
    trained(tmp_path / 'alone', hooks=[hook(tmp_path / 'a')])
    host = dict(host, hooks=[hook(tmp_path / 'b'), *host.get('hooks', ())])
    run = trained(tmp_path / 'beside', **host)
    for name in AVERAGES:
        assert logged(tmp_path / 'a' / name) == logged(tmp_path / 'b' / name)
        one, other = (torch.load(tmp_path / which / name / 'epoch_4.pth',
                                 weights_only=True) for which in 'ab')
        assert_equal(one['state_dict'], other['state_dict'])
        assert one['meta']['iter'] == run.iter == 24
        assert one['meta']['dataset_meta'] == dict(name='points')


def test_a_run_that_ends_early_saves_them_too(tmp_path):
    stop = dict(type='EarlyStoppingHook', monitor='error', rule='less',
                min_delta=100, patience=1)
    run = trained(tmp_path / 'run', hooks=[hook(tmp_path), stop])
    assert run.epoch < 4
    assert (tmp_path / f'ema/epoch_{run.epoch}.pth').is_file()


class ClassWiseError(Error):
    def compute_metrics(self, results):
        return dict(super().compute_metrics(results), each=[0.5, 1],
                    tensor=torch.tensor([0.25]))


def test_metrics_that_are_no_numbers(tmp_path):
    run = runner(tmp_path / 'run', hooks=[hook(tmp_path)])
    run._val_evaluator = Evaluator(ClassWiseError())
    run.train()
    line = next((tmp_path / 'ema').rglob('scalars.json')
                ).read_text().splitlines()[-1]
    assert json.loads(line)['each'] == [0.5, 1]
    assert json.loads(line)['tensor'] == [0.25]


def test_the_run_is_bit_equal_to_one_without(tmp_path):
    alone = trained(tmp_path / 'alone', hooks=[Hook()])
    beside = trained(tmp_path / 'beside', hooks=[hook(tmp_path)])
    assert_equal(alone.model, beside.model)
    assert logged(tmp_path / 'alone') == logged(tmp_path / 'beside')


class Augmented(Points):
    """Draws from the global generator, as transforms do."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(4), y


def test_a_validation_of_theirs_draws_no_number_of_the_run(tmp_path):
    keys = dict(dataset=Augmented())
    alone = trained(tmp_path / 'alone', hooks=[
        dict(type='mmpsw.RandomStateHook')], **keys)
    beside = trained(tmp_path / 'beside', hooks=[
        dict(type='mmpsw.RandomStateHook'), hook(tmp_path)], **keys)
    without = trained(tmp_path / 'c', hooks=[hook(tmp_path / 'd')],
                      **keys)
    again = trained(tmp_path / 'e', **keys)
    assert_equal(alone.model, beside.model)
    assert_equal(again.model, without.model)


def test_a_resumed_run_goes_on_with_them(tmp_path):
    exact = dict(type='mmpsw.RandomStateHook')
    trained(tmp_path / 'whole', hooks=[hook(tmp_path), exact])
    first = tmp_path / 'first'
    trained(tmp_path / 'begun', hooks=[hook(first), exact])
    first = first.rename(tmp_path / 'moved')
    for path in first.rglob('scalars.json'):  # as if it had ended there
        path.write_text(''.join(path.read_text().splitlines(True)[:2]))
    trained(tmp_path / 'resumed', hooks=[hook(first), exact],
            resume_from=tmp_path / 'begun' / 'iter_8.pth')
    for name in AVERAGES:
        assert logged(first / name) == logged(tmp_path / name), name


@pytest.mark.parametrize('settings', [
    dict(psw=dict(type='PSWA')),
    dict(custom_hooks=[dict(type='mmpsw.LookaheadHook')]),
    dict(custom_hooks=[dict(type='mmpsw.SwitchEMAHook')]),
    dict(psw=dict(type='PSWA', write_back=False), train_cfg=dict(x=1)),
    dict(psw=dict(type='PSWA', write_back=False, buffers='recalibrate')),
    dict(),
])
def test_what_changes_the_run_does_not_ride_along(settings):
    init_default_scope('mmengine')
    assert passenger(settings) is None
    with pytest.raises(ValueError, match="'a' cannot ride along, because"):
        RideAlongHook(dict(a=settings), dict(a='folder'))


def test_bad_runs_are_refused(tmp_path):
    trained(tmp_path / 'b')
    run = runner(tmp_path / 'c', hooks=[hook(tmp_path)],
                 resume_from=tmp_path / 'b' / 'iter_8.pth')
    with pytest.raises(ValueError, match='was saved without it'):
        run.train()


class LossToo(Toy):
    """Reports its validation loss, as mmengine has it."""

    def forward(self, x, y, mode='tensor'):
        out = super().forward(x, y, mode)
        return out if mode != 'predict' else [
            *out, BaseDataElement(loss=dict(l=torch.tensor(1.)))]


class OwnLoop(ValLoop):
    """As mmdet's TeacherStudentValLoop: it returns nothing."""

    def run(self):
        self.runner.call_hook('before_val')
        self.runner.call_hook('before_val_epoch')
        self.runner.model.eval()
        for index, batch in enumerate(self.dataloader):
            self.run_iter(index, batch)
        found = self.evaluator.evaluate(len(self.dataloader.dataset))
        self.runner.call_hook('after_val_epoch', metrics={
            f'student/{key}': value for key, value in found.items()})
        self.runner.call_hook('after_val')


def all_logged(folder):
    path, = folder.glob('*/vis_data/scalars.json')
    return [{key: value for key, value in json.loads(line).items()
             if not key.startswith(('data_time', 'time'))}
            for line in path.read_text().splitlines() if 'error' in line]


@pytest.mark.parametrize('keys', [
    dict(model=LossToo), dict(val_cfg=dict(type=OwnLoop))])
def test_the_runs_own_loop_validates(tmp_path, keys):
    average = AVERAGES['psw']
    made = []
    for folder, settings, beside in (
            ('own', average, ()),
            ('host', {}, [dict(
                type='mmpsw.RideAlongHook', averages=dict(psw=average),
                folders=dict(psw=str(tmp_path / 'along')))])):
        run = runner(tmp_path / folder, settings.get('psw'), hooks=beside,
                     model=keys.get('model', Toy)(), **EPOCHS)
        if 'val_cfg' in keys:
            run._val_loop = dict(keys['val_cfg'])
        run.train()
        made.append(run)
    lines = all_logged(tmp_path / 'own')
    assert len(lines) == 4 and all_logged(tmp_path / 'along') == lines
    assert ('student/error' in lines[0]) == ('val_cfg' in keys)


class DumpError(Error):
    """Writes what is predicted to a file, as DumpResults."""

    def __init__(self, path):
        super().__init__()
        self.out_file_path = path

    def compute_metrics(self, results):
        with open(self.out_file_path, 'w') as file:
            json.dump(results, file)
        return super().compute_metrics(results)


def test_what_the_runs_evaluator_writes_stays_the_runs(tmp_path):
    files = {}
    for name, hooks in (('alone', []), ('host', [dict(
            type='mmpsw.RideAlongHook', averages=dict(psw=AVERAGES['psw']),
            folders=dict(psw=str(tmp_path / 'along')))])):
        path = tmp_path / f'{name}.json'
        run = runner(tmp_path / name, hooks=hooks, **EPOCHS)
        run._val_evaluator = Evaluator(DumpError(str(path)))
        run.train()
        files[name] = path.read_text()
    assert files['alone'] == files['host']
    along = (tmp_path / 'along' / 'host.json').read_text()
    assert along != files['host']


def test_a_validation_alone_has_nothing_beside_it(tmp_path):
    runner(tmp_path, hooks=[hook(tmp_path)]).val()
    assert not list(tmp_path.glob('psw/*'))

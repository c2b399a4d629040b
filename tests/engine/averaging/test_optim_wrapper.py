import copy
import itertools
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from reference import assert_equal
from torch import nn
from toy import (
    Points,
    Toy,
    TwoOptimizers,
    Weights,
    assert_statistics,
    here,
    runner,
    trained,
)

from mmpsw.engine import PSWHook, PSWOptimWrapper
from mmpsw.engine.averaging.settings import PSWSettings
from mmpsw.methods.averaging import PSWA, PWALKS, PeriodicResampler

ITER = dict(by_epoch=False, period=4, buffers='keep')


def plain_loop(technique, period, iterations, accumulation=1, **keys):
    """The same training as toy.runner's, in a user's own loop."""
    model = here(Toy())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    resampler = PeriodicResampler(optimizer, technique, period,
                                  accumulation=accumulation, total=iterations,
                                  model=model, **keys)
    data = Points()
    rest = iterations % accumulation
    for iteration in range(1, iterations + 1):
        epoch, batch = divmod(iteration - 1, 6)
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(24, generator=generator)[4 * batch:][:4]
        loss = model(
            here(data.x[order]), here(data.y[order]), mode='loss')['loss']
        last = iteration > iterations - rest
        (loss / (rest if last else accumulation)).backward()
        if iteration % accumulation == 0 or iteration == iterations:
            optimizer.step()
            optimizer.zero_grad()
            resampler.step(iteration)
    return model


@pytest.mark.parametrize('psw, technique, period', [
    (dict(type='PSWA'), PSWA(), 6),
    (dict(type='PSWA', period=2), PSWA(), 12),
    (dict(type='PSWA', period=5, by_epoch=False), PSWA(), 5),
    (dict(type='PWALKS', last=0.75), PWALKS(last=0.75), 6),
])
@pytest.mark.parametrize('accumulation', [1, 4])
@pytest.mark.parametrize('loop', [
    dict(by_epoch=True, max_epochs=4),
    dict(by_epoch=False, max_iters=23, val_interval=6),
])
def test_equals_a_plain_loop(tmp_path, psw, technique, period, accumulation,
                             loop):
    """Epochs become iterations, and accumulated updates are counted."""
    run = trained(tmp_path, psw, loop, checkpoint=dict(interval=-1),
                 wrapper=dict(accumulative_counts=accumulation))
    expected = plain_loop(technique, period, run.max_iters, accumulation)
    assert_equal(run.model, expected)


def test_an_epoch_of_an_infinite_sampler_is_one_pass(tmp_path):
    run = trained(tmp_path, dict(type='PSWA'),
                 dict(by_epoch=False, max_iters=12), sampler='InfiniteSampler',
                 validate=False, batch_size=5)
    # 24 points, 5 in a batch: 5 iterations
    wrapper = run.optim_wrapper
    assert wrapper.resampler.schedule.period == 5
    assert wrapper.resampler.resamplings == 3  # at 5, 10 and the end, 12
    scalars = run.message_hub.log_scalars
    assert scalars['train/psw/samples'].data[0].tolist() == [5, 5, 2]
    assert (scalars['train/psw/shift'].data[0] > 0).all()


SGD = dict(type='SGD', lr=0.05, momentum=0.9)
ADAMW = dict(type='AdamW', lr=0.01)
THREE = dict(by_epoch=True, max_epochs=3)


@pytest.mark.parametrize('optimizer, loop, psw', [
    (SGD, THREE, dict(type='PSWM')),
    (ADAMW, dict(by_epoch=False, max_iters=17, val_interval=6),
     dict(type='PWALKS', last=2, period=5, by_epoch=False, sample_prob=0.7)),
    (SGD, THREE, dict(type='PSWA', write_back=False)),
    (ADAMW, THREE, dict(type='PSWM', momentum='polyak', evaluate='average')),
])
@pytest.mark.parametrize('accumulation', [1, 2])
def test_resume_is_exact_at_every_iteration(tmp_path, optimizer, loop, psw,
                                            accumulation):
    """Also inside of an epoch, of an epoch-based loop."""

    def run(work_dir, **keys):
        return trained(work_dir, psw, loop, optimizer=copy.deepcopy(optimizer),
                       wrapper=dict(accumulative_counts=accumulation), **keys)

    whole = run(tmp_path / 'whole')
    # resuming between two updates of an accumulation loses gradients, as
    # mmengine warns
    for iteration in range(accumulation, whole.max_iters, accumulation):
        resumed = run(tmp_path / str(iteration),
                      resume_from=tmp_path / f'whole/iter_{iteration}.pth')
        assert resumed.iter == whole.max_iters
        assert_equal(whole.model, resumed.model)


def test_a_checkpoint_deploys_the_average_of_psw(tmp_path):
    run = runner(tmp_path, dict(type='PSWA', write_back=False),
                 dict(by_epoch=True, max_epochs=1),
                 checkpoint=dict(interval=1, save_best='error', rule='less'))
    seen = []

    def evaluate(*args, **kwargs):
        seen.append(run.model.net[0].weight.clone())
        return dict(error=1.)

    run.val_loop.evaluator.evaluate = evaluate
    run.train()
    resampler = run.optim_wrapper.resampler
    live = run.model.net[0].weight.cpu()
    average = resampler.average[0].cpu()
    assert not torch.equal(live, average)
    assert torch.equal(seen[0].cpu(), average)
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    assert torch.equal(saved['state_dict']['net.0.weight'], average)
    assert torch.equal(saved['live_state_dict']['net.0.weight'], live)
    stats = saved['state_dict']['net.1.running_mean']
    assert not torch.equal(stats, run.model.net[1].running_mean.cpu())
    best = torch.load(next(tmp_path.glob('best_*.pth')), weights_only=False)
    assert torch.equal(best['state_dict']['net.0.weight'], average)


@pytest.mark.parametrize('psw, other', [
    (dict(type='PSWA', write_back=False), None),
    (dict(type='PSWA', period=3, evaluate='average'),
     dict(type='PSWA', period=3)),
])
def test_what_is_only_evaluated_leaves_the_run_alone(tmp_path, psw, other):
    baseline = trained(tmp_path / 'a', other)
    run = trained(tmp_path / 'b', psw)
    assert_equal(baseline.model, run.model)


def test_what_was_validated_is_what_is_saved(tmp_path):
    """Inside of a period: the mean of its first two epochs."""
    run = runner(tmp_path, dict(type='PSWA', period=3, evaluate='average'),
                 dict(by_epoch=True, max_epochs=3),
                 checkpoint=dict(interval=1, save_best='error', rule='less'))
    seen, live = [], Weights()

    def evaluate(*args, **kwargs):
        seen.append(run.model.net[0].weight.clone())
        return dict(error=-len(seen))

    run.register_hook(live)
    run.val_loop.evaluator.evaluate = evaluate
    run.train()
    for epoch, shown in enumerate(seen, start=1):
        saved = torch.load(tmp_path / f'epoch_{epoch}.pth')['state_dict']
        assert torch.equal(here(saved['net.0.weight']), shown)
        if epoch < 3:  # then it is written back
            samples = [state['net.0.weight'] for state in live.after]
            torch.testing.assert_close(
                shown, torch.stack(samples[:6 * epoch]).mean(0))
    best = torch.load(tmp_path / 'best_error_epoch_3.pth')['state_dict']
    assert torch.equal(here(best['net.0.weight']), seen[2])


def test_settings_of_mixed_precision_name_their_wrapper(tmp_path):
    with pytest.raises(ValueError, match='takes no loss_scale.*PSWAmpOptim'):
        runner(tmp_path, dict(type='PSWA'),
               wrapper=dict(loss_scale='dynamic')).train()


def test_validation_that_raises_leaves_the_live_weights(tmp_path):
    run = runner(tmp_path, dict(type='PSWA', write_back=False),
                 dict(by_epoch=True, max_epochs=2))

    shown, live = [], Weights()

    def fail(*args, **kwargs):
        shown.append(copy.deepcopy(run.model.state_dict()))
        raise RuntimeError('validation failed')

    run.register_hook(live)
    run.val_loop.run_iter = fail
    with pytest.raises(RuntimeError):
        run.train()
    # It saw the average, and the live weights are back at once.
    assert not torch.equal(shown[0]['net.0.weight'],
                           live.after[-1]['net.0.weight'])
    assert_equal(run.model.state_dict(), live.after[-1])


@pytest.mark.parametrize('psw', [
    dict(type='PSWA'),
    dict(type='PSWM', momentum='sample', evaluate='average'),
])
def test_recalibration_equals_that_of_torch(tmp_path, psw):
    """The statistics after the last resampling are those of its weights."""
    run = trained(tmp_path, dict(psw, buffers='recalibrate'),
                 dict(by_epoch=True, max_epochs=2), validate=False)
    order = torch.Generator().manual_seed(2)  # of the second resampling
    order = torch.randperm(24, generator=order).split(4)
    assert_statistics(run.model, [Points().x[i] for i in order])
    assert run.model.net[1].momentum == 0.1


def test_recalibration_leaves_the_random_state_alone(tmp_path):
    states = []

    class State(Hook):
        def after_train_iter(self, runner, *args, **kwargs):
            states[-1].append(torch.get_rng_state())

    for buffers in ('keep', 'recalibrate'):
        states.append([])
        trained(tmp_path / buffers, dict(type='PSWA', buffers=buffers),
               hooks=[State()], validate=False)
    for a, b in zip(*states, strict=True):
        assert torch.equal(a, b)


def test_recalibration_of_psw_leaves_the_live_buffers(tmp_path):
    baseline = trained(tmp_path / 'a', validate=False)
    psw = trained(
        tmp_path / 'b',
        dict(type='PSWA', buffers='recalibrate', write_back=False),
        validate=False)
    assert_equal(baseline.model, psw.model)


def test_clipping_and_parameter_groups(tmp_path):
    run = trained(
        tmp_path,
        dict(type='PSWA'),
        dict(by_epoch=True, max_epochs=2),
        validate=False,
        wrapper=dict(clip_grad=dict(max_norm=0.1),
                     paramwise_cfg=dict(bias_lr_mult=0.5)))
    assert len(run.optim_wrapper.optimizer.param_groups) == 6
    assert len(run.optim_wrapper.resampler.tensors) == 6 + 2
    assert run.optim_wrapper.resampler.resamplings == 2


def dict_runner(work_dir, **keys):
    model = TwoOptimizers()
    keys.setdefault('psw', dict(type='PSWA'))
    parts = dict(body=(model.net[:2], dict(type='PWALKS', last=2)),
                 head=(model.net[3:], dict(type='PSWA', period=2)))
    run = runner(work_dir, model=model, validate=False, **keys)
    run.optim_wrapper = OptimWrapperDict(**{
        name: PSWOptimWrapper(torch.optim.SGD(part.parameters(), lr=0.05), psw)
        for name, (part, psw) in parts.items()})
    return run


def test_optim_wrapper_dict(tmp_path):
    whole = dict_runner(tmp_path / 'whole')
    whole.train()
    head, body = (whole.optim_wrapper[k].resampler for k in ('head', 'body'))
    assert (head.resamplings, body.resamplings) == (2, 4)
    assert len(head.statistics) == 0 and len(body.statistics) == 2
    scalars = whole.message_hub.log_scalars
    assert scalars['train/head.psw/samples'].data[0].tolist() == [12, 12]
    assert scalars['train/body.psw/samples'].data[0].tolist() == [2] * 4
    for iteration in (5, 6, 11, 17):
        run = dict_runner(
            tmp_path / str(iteration),
            resume_from=tmp_path / 'whole' / f'iter_{iteration}.pth')
        run.train()
        assert_equal(whole.model, run.model)


def test_an_optim_wrapper_dict_ends_with_an_average(tmp_path):
    """Nobody tells its wrappers where the run ends: 24 = 3 * 7 + 3."""
    run = dict_runner(tmp_path)
    for wrapper in run.optim_wrapper.values():
        wrapper.psw = PSWSettings.from_config(
            dict(type='PSWA', by_epoch=False, period=7))
    live = Weights()
    run.register_hook(live)
    run.train()
    scalars = run.message_hub.log_scalars
    assert scalars['train/head.psw/samples'].data[0].tolist() == [7, 7, 7, 3]
    samples = [state['net.3.weight'] for state in live.after[-3:]]
    torch.testing.assert_close(
        run.model.net[3].weight.detach(), torch.stack(samples).mean(0))


def test_runner_resume_before_train(tmp_path):
    """mmengine's public way to resume, for which no hook was heard yet."""
    psw = dict(type='PSWM', momentum=0.5)
    whole = trained(tmp_path / 'whole', psw)
    for iteration in (4, 8):  # with and without a previous mean
        run = runner(tmp_path / str(iteration), psw)
        run.resume(str(tmp_path / 'whole' / f'iter_{iteration}.pth'))
        run.train()
        assert_equal(whole.model, run.model)


def logged(run, text):
    """How often a text is in the log of a run."""
    logs = Path(run.work_dir).glob('*/*.log')
    return ''.join(log.read_text() for log in logs).count(text)


@pytest.mark.parametrize('psw, loop, expected', [
    # epochs of 6: validations at 6, 12, ...; resamplings at 4, 8, 12, ...
    (dict(type='PSWA', by_epoch=False, period=4), {},
     'the validation after iteration 6 comes inside of a period of 4: what is '
     'validated and saved is the live weights'),
    (dict(type='PSWA', period=2, write_back=False), dict(val_begin=3),
     'the validation after iteration 18 comes inside of a period of 12: what '
     'is validated and saved is the average of the last whole period'),
    (dict(type='PSWA', period=2), dict(val_interval=2), ''),
    (dict(type='PSWA', period=2), dict(dynamic_intervals=[(0, 2)]), ''),
    (dict(type='PSWA', begin=1), {}, ''),
    (dict(type='PSWA', period=9), dict(val_interval=4),
     'psw.period is 54 iterations, but the run ends at 24: the weights are '
     'resampled only once, at its end'),
    (dict(type='PSWA', begin=9), dict(val_interval=4),
     'psw.begin is iteration 54, but the run ends at 24: the weights are '
     'never resampled'),
])
def test_what_a_schedule_means_is_said_once(tmp_path, psw, loop, expected):
    run = trained(tmp_path, psw, dict(by_epoch=True, max_epochs=4, **loop),
                 checkpoint=dict(interval=-1))
    assert logged(run, 'inside of a period') == ('inside of' in expected)
    assert logged(run, 'but the run ends') == ('but the run' in expected)
    assert logged(run, expected)


def test_checkpoints_are_exchanged_with_the_stock_wrapper(caplog):
    w = nn.Parameter(torch.zeros(1))
    ours = PSWOptimWrapper(torch.optim.SGD([w], lr=1., momentum=0.5),
                           psw=dict(type='PSWA', **ITER))
    stock = OptimWrapper(torch.optim.SGD([w], lr=1., momentum=0.5))
    ours.optimizer.state[w]['momentum_buffer'] = torch.tensor([-1.])
    assert ours.state_dict().keys() == stock.state_dict().keys()
    stock.load_state_dict(ours.state_dict())
    assert stock.optimizer.state[w]['momentum_buffer'].item() == -1
    ours.load_state_dict(stock.state_dict())
    with pytest.raises(ValueError, match='before 0.2.*with load_from'):
        ours.load_state_dict(dict(stock.state_dict(), psw={}))


class Still(Hook):
    """Moves no weight."""

    def before_train_iter(self, runner, *args, **kwargs):
        for group in runner.optim_wrapper.optimizer.param_groups:
            group['lr'] = 0.


@pytest.mark.parametrize('saving', [{}, dict(save_optimizer=False)])
@pytest.mark.parametrize('psw', [
    dict(type='PSWA', write_back=False, evaluate='average'),
    dict(type='PSWA', write_back=False, weighting='linear'),
    dict(type='PSWM', momentum=0.25), None])
def test_the_live_weights_come_back_whatever_the_settings(
        tmp_path, psw, saving):
    """Inside of a period too, and for a run without psw."""
    seen = Weights()
    trained(tmp_path, dict(type='PSWA', write_back=False),
            dict(by_epoch=True, max_epochs=2), hooks=[seen],
            checkpoint=dict(by_epoch=False, interval=1, **saving))
    for iteration in (6, 9):
        run = runner(tmp_path / 'other', psw, dict(
            by_epoch=False, max_iters=iteration + 1),
            hooks=[Still(), *([] if psw else [
                dict(type='mmpsw.RandomStateHook')])],
            resume_from=tmp_path / f'iter_{iteration}.pth')
        after = Weights()
        run.register_hook(after)
        run.train()
        parameters = dict(run.model.named_parameters())
        for name, value in seen.after[iteration - 1].items():
            if name in parameters:
                assert torch.equal(after.after[0][name], value), name
        if psw:
            assert logged(run, 'other settings of psw') == 1 + (iteration > 6)


def test_a_best_checkpoint_resumes_with_its_live_weights(tmp_path):
    """mmengine saves it without the optimizer, inside of the validation."""
    seen = Weights()
    psw = dict(type='PSWA', write_back=False)
    trained(tmp_path, psw, dict(by_epoch=True, max_epochs=2), hooks=[seen],
            checkpoint=dict(interval=1, save_best='error', rule='less'))
    (best, ) = tmp_path.glob('best_*.pth')
    saved = torch.load(best, weights_only=False)
    iteration = saved['meta']['iter']
    run = runner(tmp_path / 'other', psw, resume_from=best,
                 hooks=[Still()])
    after = Weights()
    run.register_hook(after)
    run.train()
    for name, _ in run.model.named_parameters():
        live = seen.after[iteration - 1][name]
        assert torch.equal(after.after[0][name], live)
    average = here(saved['state_dict']['net.3.weight'])
    assert not torch.equal(average, seen.after[iteration - 1]['net.3.weight'])


def test_resuming_a_stock_checkpoint_warns_and_goes_on(tmp_path, caplog):
    trained(tmp_path, None, dict(by_epoch=True, max_epochs=1))
    run = trained(tmp_path / 'other', dict(type='PSWA'),
                  resume_from=tmp_path / 'iter_4.pth')
    assert run.optim_wrapper.resampler.resamplings == 4


def test_names_need_the_scope():
    assert HOOKS.get('mmpsw.PSWHook') is PSWHook
    assert OPTIM_WRAPPERS.get('mmpsw.PSWOptimWrapper') is PSWOptimWrapper
    assert HOOKS.get('PSWHook') is None


@pytest.mark.parametrize('psw, message', [
    (None, 'psw=None does not say which technique'),
    (dict(period=1), 'does not say which technique'),
    (dict(type='PSWA', period=0), 'psw: period=0'),
    (dict(type='PSWA', begin=2, end=2), 'psw: begin=2 is not before'),
    (dict(type='PSWA', by_epoch='yes'), "psw: by_epoch='yes'"),
    (dict(type='PSWA', by_epoch=1), 'psw: by_epoch=1'),
    (dict(type='PSWA', by_epoch=0), 'psw: by_epoch=0'),
    (dict(type='PSWA', by_epoch=False), 'by_epoch=False counts iterations.*'
     'period=1000'),
    (dict(type='PSWA', buffers='mean'), "psw: buffers='mean'.*'recalibrate'"),
    (dict(type='PSWA', restart=True), 'restart=True is not a key that'),
    (dict(type='PSWA', optimizer_state='keep'), 'is not a key that mmpsw'),
    (dict(type='PSWM', momentum='ahead'), "psw: momentum='ahead' is not"),
    (dict(type='PSWA', last=1), 'not a key of PSWA'),
    (dict(type='PSWA', perod=1), 'psw: perod=1 is not a key that mmpsw'),
    (dict(type='PSWA', sample_prob=2), 'psw: sample_prob=2'),
])
def test_bad_settings(psw, message):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.)
    before = copy.deepcopy(psw)
    with pytest.raises(ValueError, match=message):
        PSWOptimWrapper(optimizer, psw=psw)
    assert psw == before


@pytest.mark.parametrize('several', [False, True])
def test_a_wrapper_that_misses_its_hook(tmp_path, several):
    make = dict_runner if several else runner
    run = make(tmp_path, psw=dict(type='PSWA', **ITER), hook=False)
    with pytest.raises(ValueError) as error:
        run.train()
    assert "optim_wrapper = dict(type='mmpsw.PSWOptimWrapper'" in str(
        error.value)
    assert "custom_hooks = [dict(type='mmpsw.PSWHook')]" in str(error.value)
    assert run.iter == 0


def test_a_hook_that_misses_its_wrapper(tmp_path):
    run = runner(tmp_path, hooks=[dict(type='mmpsw.PSWHook')])
    with pytest.raises(ValueError, match='PSWHook needs a PSWOptimWrapper') \
            as error:
        run.train()
    assert "type='mmpsw.PSWOptimWrapper'" in str(error.value)


def test_what_does_not_fit_the_loop(tmp_path):
    with pytest.raises(ValueError, match='psw: last=7 is longer than the pe'):
        trained(tmp_path, dict(type='PWALKS', last=7))
    with pytest.raises(ValueError, match='holds no optimizer update'):
        trained(tmp_path, dict(type='PSWA'),
               wrapper=dict(accumulative_counts=7))
    with pytest.raises(ValueError, match='psw.write_back=False and EMAHook '
                       'cannot be used together'):
        trained(tmp_path, dict(type='PSWA', write_back=False),
               hooks=[dict(type='EMAHook')])


def test_epochs_of_a_data_set_without_length(tmp_path):

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            points = Points()
            return (points[i % 24] for i in itertools.count())

    def run(psw):
        loader = torch.utils.data.DataLoader(Endless(), batch_size=4)
        return runner(tmp_path, psw, dict(by_epoch=False, max_iters=8),
                      validate=False, loader=loader)

    with pytest.raises(ValueError, match='psw: period=1 counts epochs.*'
                       'by_epoch=False'):
        run(dict(type='PSWA')).train()
    done = run(dict(type='PSWA', by_epoch=False, period=4))
    done.train()
    assert done.optim_wrapper.resampler.resamplings == 2


@pytest.mark.parametrize('resume', [False, True])
def test_flexible_runner_is_refused(tmp_path, resume):
    from mmengine.runner import FlexibleRunner
    psw = dict(type='mmpsw.PSWOptimWrapper', psw=dict(type='PSWA'))
    checkpoint = None
    if resume:
        trained(tmp_path, psw['psw'], dict(by_epoch=True, max_epochs=1))
        checkpoint = str(tmp_path / 'iter_6.pth')
    run = FlexibleRunner(
        Toy(), work_dir=str(tmp_path),
        train_dataloader=torch.utils.data.DataLoader(Points(), batch_size=4),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(psw, optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='mmpsw.PSWHook')], resume=resume,
        load_from=checkpoint)
    with pytest.raises(ValueError, match='FlexibleRunner with SingleDeviceSt'
                       'rategy, because its checkpoints would lose'):
        run.train()
    assert run.iter == 0


def test_bad_hook():
    for wrong in (0, True, 1.5):
        with pytest.raises(ValueError, match=f'recalibrate_batches={wrong}'):
            PSWHook(recalibrate_batches=wrong)

"""A GAN in mmengine: a step, a resume, what stops a run, what is refused."""
import copy
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from launching import DIST_TRAIN, environment
from mmengine.config import Config
from reference import assert_equal
from tiny_gan import GANRecord, Spots, adam, runner, settings
from torch.utils._python_dispatch import TorchDispatchMode
from toy import here

from mmpsw import configs
from mmpsw.commands.launch import has_accelerator
from mmpsw.commands.train import main

GAN = 'configs/gan/free_adversarial_sign_digits.py'
needs_cpu = pytest.mark.skipif(
    has_accelerator(), reason='about machines without accelerator')


def train(*args, **keys):
    run = runner(*args, **keys)
    run.train()
    return run


def by_hand(run, batches, epsilon, replays):
    """The published loop, from the weights and generators of a new run.

    Two backward passes a replay, as in the official code: of real images,
    then of generated ones.
    """
    model, classes = copy.deepcopy(run.model).train(), 3
    net_g, net_d = model.generator, model.discriminator
    opt_g, opt_d = (torch.optim.Adam(net.parameters(), 0.01, (0., 0.9))
                    for net in (net_g, net_d))
    noise = torch.Generator().manual_seed(3)
    delta = here(torch.randn(
        4, 3, 4, 4, generator=torch.Generator().manual_seed(3)
    ).clamp(-epsilon, epsilon))

    def draw():
        z = torch.randn(4, 5, generator=noise)
        return here(z), here(torch.randint(classes, (4, ), generator=noise))

    for step, batch in enumerate(batches):
        for opt in (opt_g, opt_d):
            opt.param_groups[0]['lr'] = 0.01 * 0.9**step
        x = here((torch.stack(batch['inputs']) - 127.5) / 127.5)
        y = here(torch.cat([s.gt_label for s in batch['data_samples']]))
        z, fake_y = draw()
        fake = net_g(z, fake_y).detach()
        for _ in range(replays):
            opt_d.zero_grad()
            adv = (x + delta).clamp(-1, 1).requires_grad_()
            out = net_d(adv, y)
            (F.relu(1 - out.real).mean()
             + F.cross_entropy(out.classes, y)).backward()
            delta = (delta + epsilon * adv.grad.sign()).clamp(
                -epsilon, epsilon)
            out = net_d(fake, fake_y)
            (F.relu(1 + out.real).mean() + F.kl_div(
                F.log_softmax(out.classes, 1),
                torch.full_like(out.classes, 1 / classes),
                reduction='batchmean')).backward()
            opt_d.step()
        z, fake_y = draw()
        opt_g.zero_grad()
        out = net_d(net_g(z, fake_y), fake_y)
        (F.cross_entropy(out.classes, fake_y) - out.real.mean()).backward()
        opt_g.step()
    return model, delta


@pytest.mark.parametrize('epsilon, replays', [(0.1, 2), (0.05, 3), (0., 1)])
def test_a_run_is_the_published_loop(tmp_path, epsilon, replays):
    """With epsilon = 0 and one replay that is a GAN's plain loop."""
    run = runner(tmp_path, dict(epsilon=epsilon, replays=replays))
    batches = [batch for _, batch in zip(range(6), iter(
        run.build_dataloader(copy.deepcopy(run._train_dataloader))))]
    model, delta = by_hand(run, batches, epsilon, replays)
    run.train()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], value,
                                   rtol=1e-4, atol=1e-6, msg=name)
    assert torch.equal(run.model.perturbation.delta, delta)
    assert run.model.perturbation.replays == 6 * replays


class Waits(TorchDispatchMode):
    """Counts what a GPU is waited for: numbers that are asked for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@needs_cpu
@pytest.mark.parametrize('parts', [1, 3])
def test_a_step_waits_once(tmp_path, parts):
    """For what is logged, and the health is seen in that."""
    sgd = dict(optimizer=dict(type='SGD', lr=0.01))
    run = runner(tmp_path, dict(discriminator_steps=parts), batch_size=12,
                 optim_wrapper=dict(
                     constructor='mmpsw.GANOptimWrapperConstructor',
                     generator=sgd, discriminator=sgd))
    wrapper = run.build_optim_wrapper(run.optim_wrapper)
    batch = next(iter(run.build_dataloader(run._train_dataloader)))
    run.model.train_step(batch, wrapper)  # the first looks at the range
    lists = []
    tolist = torch.Tensor.tolist
    with Waits() as waits, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, 'tolist',
                      lambda x: lists.append(x.device) or tolist(x))
        logs = run.model.train_step(batch, wrapper)
    # On a CPU yet: the largest label, and mmengine's look at the padding.
    assert (len(lists), waits.count) == (1, 2)
    assert all(type(value) is float for value in logs.values())


@pytest.mark.parametrize('stop', [1, 3, 5])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(tmp_path, stop):
    whole, rest = GANRecord(), GANRecord()
    train(tmp_path / 'a', hooks=[whole])
    train(tmp_path / 'b', hooks=[rest], resume=True,
          load_from=str(tmp_path / 'a' / f'iter_{stop}.pth'))
    assert sorted(rest.seen) == list(range(stop + 1, 7))
    for step, seen in rest.seen.items():
        assert_equal(seen['model'], whole.seen[step]['model'])
        for key in ('delta', 'noise'):
            assert torch.equal(seen[key], whole.seen[step][key])
        assert seen['steps'] == step


def test_a_checkpoint_holds_the_networks_weights_and_plain_state(tmp_path):
    train(tmp_path)
    saved = torch.load(tmp_path / 'iter_6.pth', weights_only=True)
    assert {name.split('.')[0] for name in saved['state_dict']
            } == {'generator', 'discriminator'}
    state = saved['optimizer']['free_adversarial']
    assert state['perturbation']['delta'].shape == (4, 3, 4, 4)
    assert state['steps'] == 6


def test_several_minibatches_for_a_step_of_the_generator(tmp_path):
    run = train(tmp_path, dict(discriminator_steps=3, replays=1),
                batch_size=12)
    assert run.model.perturbation.replays == 18
    assert run.model.perturbation.delta.shape[0] == 4
    state = run.optim_wrapper['generator'].optimizer.state
    assert {int(s['step']) for s in state.values()} == {6}


@pytest.mark.parametrize('stop', [2])
def test_an_attack_resumes_exactly_and_trains_the_discriminator(
        tmp_path, stop):
    """Its random start goes on; without steps of the attack it is another."""
    model = dict(replays=1, pgd_steps=2, tau=0.05, discriminator_steps=3)
    whole, rest = GANRecord(), GANRecord()
    run = train(tmp_path / 'a', model, batch_size=12, hooks=[whole])
    train(tmp_path / 'b', model, batch_size=12, hooks=[rest], resume=True,
          load_from=str(tmp_path / 'a' / f'iter_{stop}.pth'))
    assert_equal(rest.seen[6]['model'], whole.seen[6]['model'])
    state = run.optim_wrapper['discriminator'].optimizer.state
    assert {int(s['step']) for s in state.values()} == {18}


@needs_cpu
def test_mixed_precision_trains_in_bf16(tmp_path):
    half = adam(type='mmpsw.PSWAmpOptimWrapper', psw=dict(
        type='PSWA', by_epoch=False, period=3))
    run = train(tmp_path, optim_wrapper=dict(
        constructor='mmpsw.GANOptimWrapperConstructor', generator=half,
        discriminator=half), hooks=[dict(type='mmpsw.PSWHook')])
    assert run.model.perturbation.delta.dtype == torch.float32
    assert run.model.perturbation.delta.abs().max() == torch.tensor(0.1)


def averaging(**psw):
    return dict(
        constructor='mmpsw.GANOptimWrapperConstructor', discriminator=adam(),
        generator=adam(type='mmpsw.PSWOptimWrapper', psw=dict(
            type='PSWA', by_epoch=False, period=3, **psw)))


def test_the_generators_average_is_saved_and_training_goes_on(tmp_path):
    """Psw: batch norm's statistics are averaged with the weights."""
    plain, psw = GANRecord(), GANRecord()
    train(tmp_path / 'a', hooks=[plain])
    train(tmp_path / 'b', optim_wrapper=averaging(write_back=False),
          hooks=[dict(type='mmpsw.PSWHook'), psw])
    assert_equal(plain.seen[6]['model'], psw.seen[6]['model'])
    saved = torch.load(tmp_path / 'b' / 'iter_6.pth', weights_only=True)
    for name, value in saved['state_dict'].items():
        live = [plain.seen[step]['model'][name] for step in (4, 5, 6)]
        if name.startswith('generator') and value.is_floating_point():
            torch.testing.assert_close(value, torch.stack(live).mean(0))
        else:
            assert torch.equal(value, live[-1])


def test_a_fragment_averages_the_generator_alone():
    cfg = configs.load_config(GAN)
    configs.apply_fragments(cfg, [configs.load_fragment('pswa')])
    wrapper = cfg.optim_wrapper
    assert wrapper.generator.type == 'mmpsw.PSWOptimWrapper'
    assert wrapper.discriminator.type == 'OptimWrapper'
    assert 'psw' not in wrapper.discriminator
    configs.apply_fragments(cfg, [], amp=True)
    assert wrapper.generator.type == 'mmpsw.PSWAmpOptimWrapper'
    assert wrapper.discriminator.type == 'AmpOptimWrapper'


def test_arms_differ_in_one_thing_each():
    def changed(name):
        cfg, own = (configs.load_config(GAN) for _ in range(2))
        configs.apply_fragments(cfg, [configs.load_fragment(name)])
        return {key for key in cfg if cfg[key] != own[key]}, cfg.model

    assert changed('free_adversarial')[0] == set()
    keys, model = changed('acgan')
    assert keys == {'model'} and model.epsilon == 0 and model.replays == 2
    keys, model = changed('sngan')
    assert keys == {'model', 'param_scheduler', 'train_dataloader'}
    assert model.discriminator.head == 'projection'
    assert model.discriminator.spectral_norm
    keys, model = changed('sagan')
    assert keys == {'model', 'optim_wrapper', 'param_scheduler'}
    assert model.generator.attention and model.discriminator.attention
    keys, model = changed('rob_gan')
    assert keys == {'model', 'param_scheduler', 'train_dataloader'}
    assert (model.pgd_steps, model.replays) == (3, 1)


@pytest.mark.parametrize('make, words', [
    (lambda: runner('', dict(generator=dict(
        type='TinyGenerator', num_classes=2))), 'num_classes=2.*is 3'),
    (lambda: runner('', dict(replays=0)), 'replays=0 is not possible'),
    (lambda: runner('', dict(pgd_steps=-1)), 'pgd_steps=-1 is not possible'),
    (lambda: runner('', dict(class_weights=dict(fakes=0.))),
     'class_weights has no fakes: use real, fake, generator'),
    (lambda: runner('', dict(replays=2, pgd_steps=3)),
     'pgd_steps=3 and model.replays=2 cannot be used together'),
])
def test_a_model_that_does_not_fit_is_refused(make, words, tmp_path,
                                              monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        make()


GENERATOR_ALONE = dict(constructor='mmpsw.GANOptimWrapperConstructor',
                       generator=adam())


@pytest.mark.parametrize('keys, words', [
    (dict(optim_wrapper=GENERATOR_ALONE),
     'optim_wrapper.discriminator is missing'),
    (dict(optim_wrapper=dict(GENERATOR_ALONE, discriminator=adam(
        accumulative_counts=2))), 'accumulative_counts=2 is not possible'),
    (dict(train_dataloader=dict(
        batch_size=5, num_workers=0, dataset=Spots(),
        sampler=dict(type='DefaultSampler', shuffle=True))),
     'last batch has 4 images instead of 5.*drop_last=True'),
    (dict(train_dataloader=dict(
        batch_size=4, num_workers=0, dataset=Spots(classes=4),
        sampler=dict(type='InfiniteSampler', shuffle=True))),
     'has 4 classes.*num_classes=3'),
    (dict(model=dict(discriminator_steps=3)),
     '4 images cannot be split.*discriminator_steps=3'),
    (dict(model=dict(data_preprocessor=dict(type='ImgDataPreprocessor'))),
     r'needs \[-1, 1\].*mean=\[127.5\]'),
])
def test_what_does_not_fit_is_refused_before_a_step(tmp_path, keys, words):
    record = GANRecord()
    with pytest.raises(ValueError, match=words):
        train(tmp_path, hooks=[record], **keys)
    assert not record.seen and not list(tmp_path.glob('*.pth'))


def test_a_label_without_a_class_is_refused(tmp_path):
    data = Spots(classes=4)
    data.metainfo = dict(data.metainfo)
    run = runner(tmp_path)
    with pytest.raises(ValueError, match='class 3.*num_classes=3'):
        run.model.train_step(dict(
            inputs=[data[3]['inputs']],
            data_samples=[data[3]['data_samples']]), None)


class Spoil(GANRecord):
    """Puts something into the generator's weights at iteration 4."""

    def __init__(self, value, when):
        super().__init__()
        self.value, self.when = value, when

    def spoil(self, runner, when):
        if runner.iter + 1 == 4 and when == self.when:
            runner.model.generator.offset.weight.data.fill_(self.value)

    def before_train_iter(self, runner, *args, **kwargs):
        self.spoil(runner, 'before')

    def after_train_iter(self, runner, *args, **kwargs):
        self.spoil(runner, 'after')


@pytest.mark.parametrize('when, words', [
    ('before', 'loss_discriminator is nan at step 4'),
    ('after', 'generator.offset.weight is not finite at iteration 4')])
def test_a_run_that_breaks_leaves_the_last_good_checkpoint(
        tmp_path, when, words):
    from mmpsw.runtime.saving import SafeSavingHook
    with pytest.raises(ValueError, match=words):
        train(tmp_path, hooks=[Spoil(float('nan'), when), SafeSavingHook()],
              default_hooks=dict(checkpoint=dict(
                  type='CheckpointHook', by_epoch=False, interval=1,
                  max_keep_ckpts=1)))
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_3.pth']
    saved = torch.load(tmp_path / 'iter_3.pth', weights_only=True)
    assert all(v.isfinite().all() for v in saved['state_dict'].values())


class Collapse(GANRecord):
    """Makes the discriminator say the same of all images."""

    def before_train_iter(self, runner, *args, **kwargs):
        for layer in (runner.model.discriminator.score,
                      runner.model.discriminator.project):
            layer.weight.data.zero_()


def test_a_collapsed_discriminator_stops_the_run(tmp_path):
    with pytest.raises(ValueError, match='has collapsed: for 3 steps until '
                       'step 3 '):
        train(tmp_path, dict(patience=3), hooks=[Collapse()],
              optim_wrapper=dict(
                  constructor='mmpsw.GANOptimWrapperConstructor',
                  generator=adam(), discriminator=dict(
                      optimizer=dict(type='SGD', lr=0.))))
    assert (tmp_path / 'iter_2.pth').is_file()


def test_a_grid_of_samples_at_each_validation_from_the_same_z(tmp_path):
    pictures = []

    class Show(GANRecord):
        def before_run(self, runner):
            runner.visualizer.add_image = (
                lambda name, image, step: pictures.append((step, image)))

    val = dict(batch_size=4, num_workers=0, dataset=Spots(8),
               sampler=dict(type='DefaultSampler', shuffle=False))
    run = train(tmp_path, hooks=[Show()], val_dataloader=val, val_cfg={},
                val_evaluator=dict(type='DumpResults',
                                   out_file_path=f'{tmp_path}/x.pkl'))
    assert [step for step, _ in pictures] == [2, 4, 6]
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    run.model.eval()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    last = run.model.generator(here(z), here(labels)).cpu()
    shown = torch.from_numpy(pictures[-1][1]).permute(2, 0, 1)
    for index, image in enumerate(last):
        top, left = index // 2 * 5 + 1, index % 2 * 5 + 1
        torch.testing.assert_close(
            shown[:, top:top + 4, left:left + 4].float(),
            (image.detach() + 1) * 127.5, rtol=0, atol=1)


def test_the_same_z_measures_every_validation(tmp_path):
    run = runner(tmp_path)
    batch = dict(inputs=[Spots()[i]['inputs'] for i in range(4)],
                 data_samples=[Spots()[i]['data_samples'] for i in range(4)])
    run.model.eval()
    first, second = run.model.val_step(batch), run.model.val_step(batch)
    run.model.start_validation()
    again = run.model.val_step(batch)
    assert torch.equal(first[0]['fake'], again[0]['fake'])
    assert not torch.equal(first[0]['fake'], second[0]['fake'])
    torch.testing.assert_close(
        first[1]['real'].cpu(), batch['inputs'][1] / 127.5 - 1)


def write_config(path, *hooks, **keys):
    Config(settings(
        hooks=[dict(type='mmpsw.PSWHook'), dict(type='GANRecord'), *hooks],
        optim_wrapper=averaging(write_back=False),
        default_scope='mmengine',
        custom_imports=dict(imports=['tiny_gan']), **keys)).dump(path)
    return str(path)


def test_a_killed_run_goes_on_by_the_command_line(tmp_path, device):
    """As after a lost machine: to the bit what it would have been."""
    killed = write_config(tmp_path / 'gan.py',
                          dict(type='KillAt', iteration=4))
    result = subprocess.run(
        [sys.executable, '-m', 'mmpsw.commands.train', killed, '--work-dir',
         tmp_path / 'run'], env=environment(device), capture_output=True,
        timeout=300, check=False)
    assert result.returncode == -signal.SIGKILL
    config = write_config(tmp_path / 'gan.py')
    for work_dir, *resume in (('run', '--resume'), ('whole', )):
        assert main([config, '--work-dir', str(tmp_path / work_dir),
                     *resume]) == 0
    resumed, whole = (torch.load(tmp_path / name / 'rank0.pt')
                      for name in ('run', 'whole'))
    assert sorted(resumed) == [4, 5, 6]
    for step, seen in resumed.items():
        assert_equal(seen['model'], whole[step]['model'])
        assert torch.equal(seen['delta'], whole[step]['delta'])
    saved = [torch.load(tmp_path / name / 'iter_6.pth', weights_only=True)
             for name in ('run', 'whole')]
    assert_equal(*(one['state_dict'] for one in saved))


def launched(folder, *argv):
    """The tiny GAN in two processes; what each held after each iteration."""
    write_config(folder / 'gan.py', model_wrapper_cfg=dict(
        type='MMSeparateDistributedDataParallel'))
    work_dir = folder / f'run{len(argv)}'
    result = subprocess.run(
        [*DIST_TRAIN, folder / 'gan.py', '2', '--work-dir', work_dir, *argv],
        env=environment(), capture_output=True, text=True, timeout=300,
        check=False)
    assert result.returncode == 0, result.stderr
    return work_dir, [torch.load(work_dir / f'rank{rank}.pt')
                      for rank in range(2)]


@needs_cpu
def test_two_processes_hold_the_same_weights(tmp_path):
    """Each perturbs images of its own, with a delta of its own."""
    work_dir, (one, other) = launched(tmp_path)
    for step in range(1, 7):
        for name, value in one[step]['model'].items():
            if '.running_' not in name:  # of each process's own images
                assert torch.equal(value, other[step]['model'][name]), name
        assert not torch.equal(one[step]['delta'], other[step]['delta'])
        assert torch.equal(one[step]['noise'], other[step]['noise'])
    # A checkpoint has the plain names, and the average of psw.
    saved = torch.load(work_dir / 'iter_3.pth', weights_only=True)
    run = runner(tmp_path / 'alone')
    assert saved['state_dict'].keys() == run.model.state_dict().keys()
    name = 'generator.offset.weight'
    live = [one[step]['model'][name] for step in (1, 2, 3)]
    torch.testing.assert_close(saved['state_dict'][name],
                               torch.stack(live).mean(0))
    _, resumed = launched(tmp_path, '--resume', str(work_dir / 'iter_3.pth'))
    assert sorted(resumed[0]) == [4, 5, 6]
    assert torch.equal(resumed[0][4]['noise'], one[4]['noise'])
    for name, value in resumed[0][6]['model'].items():
        assert '.running_' in name or torch.equal(
            value, resumed[1][6]['model'][name])

"""One sample an iteration, whatever a model, a loop or another hook does."""
import copy
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import IterBasedTrainLoop
from reference import assert_equal
from torch import nn
from torch.utils.data import DataLoader
from toy import Points, Toy, Weights, here, runner, trained

from mmpsw.engine import PSWHook, PSWOptimWrapper
from mmpsw.engine.averaging.follower import Follower
from mmpsw.engine.averaging.settings import PSWSettings
from mmpsw.methods.averaging import running_statistics
from mmpsw.runtime.epochs import epoch_length
from mmpsw.runtime.saving import SafeSavingHook

PSW = dict(type='PSWA', write_back=False)


class Own(Toy):
    """Calls ``backward`` itself."""

    def losses(self, data):
        return self(*map(here, data), mode='loss')['loss']

    def train_step(self, data, optim_wrapper):
        optim_wrapper.zero_grad()
        loss = self.losses(data)
        loss.backward()
        optim_wrapper.step()
        return dict(loss=loss)


class Twice(Own):
    """Updates twice in an iteration, as a GAN with one optimizer."""

    def train_step(self, data, optim_wrapper):
        for _ in range(2):
            loss = self.losses(data)
            optim_wrapper.update_params(loss)
        return dict(loss=loss)


class TwoBackwards(Own):
    """Adds two gradients for one update."""

    def train_step(self, data, optim_wrapper):
        for _ in range(2):
            loss = self.losses(data)
            optim_wrapper.backward(loss)
        optim_wrapper.step()
        optim_wrapper.zero_grad()
        return dict(loss=loss)


class Closure(Own):
    """What LBFGS asks for."""

    def train_step(self, data, optim_wrapper):

        def closure():
            optim_wrapper.zero_grad()
            loss = self.losses(data)
            optim_wrapper.backward(loss)
            return loss

        optim_wrapper.step(closure=closure)
        return dict(loss=closure().detach())


LBFGS = dict(type='LBFGS', lr=0.01, max_iter=3)


@pytest.mark.parametrize('model, optimizer, accumulation', [
    (Own, None, 1), (Own, None, 2), (Twice, None, 1), (TwoBackwards, None, 1),
    (TwoBackwards, None, 2), (Closure, LBFGS, 1)])
def test_a_period_is_an_epoch(tmp_path, model, optimizer, accumulation):
    """By hand: the mean of the weights after each iteration of the last."""
    live = Weights()
    run = trained(tmp_path, PSW, model=model(), optimizer=optimizer,
                  hooks=[live], checkpoint=dict(interval=-1),
                  wrapper=dict(accumulative_counts=accumulation))
    resampler = run.optim_wrapper.resampler
    assert resampler.resamplings == 4
    samples = run.message_hub.log_scalars['train/psw/samples'].data[0]
    assert samples.tolist() == [6] * 4
    named = resampler.weights.named(resampler.average)
    for name, mean in named.items():
        seen = torch.stack([state[name] for state in live.after[-6:]])
        torch.testing.assert_close(mean, seen.mean(0))


class Around(torch.optim.Optimizer):
    """Around another optimizer, without torch's constructor: as timm does."""

    def __init__(self, base):
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self.base, self.param_groups = base, base.param_groups
        self.state, self.defaults = base.state, base.defaults

    def step(self, closure=None):
        return self.base.step(closure)

    def state_dict(self):
        return self.base.state_dict()


def test_an_optimizer_around_another_one(tmp_path):
    run = runner(tmp_path, dict(type='PSWA'), validate=False,
                 checkpoint=dict(interval=-1))
    around = Around(torch.optim.SGD(run.model.parameters(), lr=0.05))
    run.optim_wrapper = PSWOptimWrapper(around, psw=dict(type='PSWA'))
    run.train()
    samples = run.message_hub.log_scalars['train/psw/samples'].data[0]
    assert samples.tolist() == [6] * 4


def test_a_loop_of_ones_own(tmp_path):
    """It need not have the attributes of mmengine's loops."""

    class Loop(IterBasedTrainLoop):
        def __init__(self, runner, dataloader):
            super().__init__(runner, dataloader, max_iters=12)
            del self.val_interval

        def run(self):
            self.runner.call_hook('before_train')
            self.runner.val_loop.run()
            while self._iter < self._max_iters:
                self.run_iter(next(self.dataloader_iterator))
            self.runner.call_hook('after_train')

        def run_iter(self, batch):
            super().run_iter(batch)
            if self._iter % 4 == 0:
                self.runner.val_loop.run()

    run = runner(tmp_path, PSW, checkpoint=dict(interval=-1))
    loader = run.build_dataloader(run._train_dataloader)
    run._train_loop = Loop(run, loader)
    run.train()
    assert run.optim_wrapper.resampler.resamplings == 2


# How long an epoch is


@pytest.mark.parametrize('world', [1, 8])
@pytest.mark.parametrize('kind', ['aspect ratio', 'sources', 'groups'])
def test_processes_share_an_endless_sampler(monkeypatch, world, kind):
    """Of mmdet's zoo, with a data set of 1000 images, 4 on a GPU."""
    samplers = pytest.importorskip('mmdet.datasets.samplers')
    monkeypatch.setattr('mmpsw.runtime.epochs.get_world_size', lambda: world)

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 500

        def get_data_info(self, index):
            return dict(width=640 if index % 2 else 320, height=480)

        __getitem__ = get_data_info

    images = torch.utils.data.ConcatDataset([Images(), Images()])
    images.cumulative_sizes = [500, 1000]
    images.get_data_info = images.__getitem__
    if kind == 'aspect ratio':
        loader = DataLoader(images, batch_sampler=(
            samplers.AspectRatioBatchSampler(
                InfiniteSampler(images, seed=0), batch_size=4)))
    else:
        name = ('MultiSourceSampler' if kind == 'sources' else
                'GroupMultiSourceSampler')
        loader = DataLoader(images, batch_size=4, sampler=getattr(
            samplers, name)(images, 4, [1, 3], seed=0))

    class Loop:
        dataloader = loader

    assert epoch_length(Loop) == {1: 250, 8: 32}[world]


# Which buffers


class Memories(Toy):
    """A queue of unit vectors as MoCo's, a count, and batch norm."""

    def __init__(self):
        super().__init__()
        self.register_buffer('queue', nn.functional.normalize(
            torch.ones(4, 8), dim=0))
        self.register_buffer('seen', torch.zeros(()))

    def forward(self, x, y, mode='tensor'):
        if mode == 'loss':
            column = int(self.seen) % 8
            self.queue[:, column] = nn.functional.normalize(x[0], dim=0)
            self.seen += 1
        return super().forward(x, y, mode)


@pytest.mark.parametrize('hook, psw', [
    (None, dict(type='PSWA')),
    (None, dict(type='PSWM', buffers='recalibrate')),
    (dict(type='mmpsw.SwitchEMAHook', momentum=0.1, update_buffers=True),
     None),
    (dict(type='mmpsw.LookaheadHook', k=3), None)])
def test_memories_and_counts_keep_their_live_values(tmp_path, hook, psw):
    seen = []

    class Look(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, *args, **kwargs):
            model = runner.model
            seen.append((model.queue.norm(dim=0), model.seen.item(),
                         model.net[1].running_mean.clone()))

    live = Weights()
    trained(tmp_path, psw, model=Memories(), hooks=[
        *([hook] if hook else []), live, Look()], validate=False,
        checkpoint=dict(interval=-1))
    changed = 0
    for before, (lengths, count, mean) in zip(live.after, seen, strict=True):
        torch.testing.assert_close(lengths, torch.ones(8))
        assert count == before['seen'].item()
        changed += not torch.equal(mean, before['net.1.running_mean'])
    assert changed == (0 if hook and 'Lookahead' in hook['type'] else 4)


def test_statistics_of_real_models():
    """mmpretrain's MoCo and mmdet's SeesawLoss have other buffers too."""
    from mmengine.registry import init_default_scope
    pretrain = pytest.importorskip('mmpretrain.registry')
    init_default_scope('mmpretrain')
    backbone = dict(type='ResNet', depth=18, norm_cfg=dict(type='BN'))
    moco = pretrain.MODELS.build(dict(
        type='MoCo', queue_len=16, feat_dim=8, momentum=0.01,
        backbone=backbone, neck=dict(
            type='MoCoV2Neck', in_channels=512, hid_channels=8,
            out_channels=8, with_avg_pool=True),
        head=dict(type='ContrastiveHead', temperature=0.2, loss=dict(
            type='CrossEntropyLoss'))))
    norms = [m for m in moco.modules() if isinstance(m, nn.BatchNorm2d)]
    assert 'queue' in dict(moco.named_buffers())
    assert len(running_statistics(moco)) == 2 * len(norms) == 2 * 2 * 20
    seesaw = pytest.importorskip('mmdet.models.losses').SeesawLoss()
    assert dict(seesaw.named_buffers()) and not running_statistics(seesaw)
    untracked = nn.BatchNorm2d(3, track_running_stats=False)
    assert not running_statistics(untracked)
    assert len(running_statistics(nn.InstanceNorm2d(
        3, track_running_stats=True))) == 2


# What it costs


def test_a_gpu_is_waited_for_inside_of_the_window_only():
    """A fused optimizer's skip is in a tensor, asked by its ``item``."""
    asked = []

    class Flag:
        def __init__(self, iteration):
            self.iteration = iteration

        def item(self):
            asked.append(self.iteration)
            return float(self.iteration == 6)

    w = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Rprop([w])  # it does not look at the flag
    follower = Follower(
        PSWSettings.from_config(dict(type='PWALKS', last=3, period=6,
                                     by_epoch=False)),
        optimizer, epoch_length=None)
    for iteration in range(1, 13):
        w.data += 1
        optimizer.found_inf = Flag(iteration)
        optimizer.step()
        done = follower.after_iteration(iteration)
        if iteration == 6:
            assert done.samples == 2 and w.item() == 4.5
    assert asked == [4, 5, 6, 10, 11, 12]


def test_compiled_training_has_the_stock_graphs(tmp_path):
    """mmengine compiles ``train_step``; the averaging is outside of it."""
    from torch._dynamo.utils import counters
    graphs = {}
    for name, psw in dict(stock=None, psw=PSW, pswa=dict(type='PSWA')).items():
        torch._dynamo.reset()
        counters.clear()
        trained(tmp_path / name, psw, dict(by_epoch=True, max_epochs=2),
                validate=False, checkpoint=dict(interval=-1),
                cfg=dict(compile=dict(backend='eager')))
        graphs[name] = counters['stats']['unique_graphs']
    assert graphs['psw'] == graphs['pswa'] == graphs['stock'] > 0


def saved_bytes(path):
    """Of all tensors in a checkpoint, each storage counted once."""
    storages = {}

    def look(node):
        if isinstance(node, torch.Tensor):
            storage = node.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(node, dict):
            list(map(look, node.values()))
        elif isinstance(node, (list, tuple)):
            list(map(look, node))

    look(torch.load(path, weights_only=False))
    return sum(storages.values())


class Large(Toy):
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(100, 1000)


@pytest.mark.parametrize('psw, hooks, between, inside', [
    (None, [], 2, 2),
    (None, [dict(type='EMAHook')], 3, 3),
    (PSW, [], 3, 4),
    (dict(type='PSWA'), [], 2, 3),
    (dict(type='PSWM'), [], 3, 4),
])
def test_a_checkpoint_is_as_large_as_emas(tmp_path, psw, hooks, between,
                                          inside):
    """With SGD's momentum, in times the weights; 4 is with the open mean."""
    model = Large()
    size = sum(p.numel() * 4 for p in model.parameters())

    class Grad(Hook):  # for a momentum buffer of all weights
        def before_train_iter(self, runner, *args, **kwargs):
            for param in runner.model.more.parameters():
                param.grad = torch.zeros_like(param)

    trained(tmp_path, psw, dict(by_epoch=True, max_epochs=2), model=model,
            hooks=[*copy.deepcopy(hooks), Grad()])
    assert saved_bytes(tmp_path / 'iter_12.pth') / size == pytest.approx(
        between, abs=0.1)
    assert saved_bytes(tmp_path / 'iter_9.pth') / size == pytest.approx(
        inside, abs=0.1)


# What else a run may have


@pytest.mark.parametrize('psw, hooks', [
    (PSW, [dict(type='mmpsw.ScheduleFreeHook')]),
    (PSW, [dict(type='mmpsw.LookaheadHook')]),
    (dict(type='PSWA', evaluate='average'), [dict(type='EMAHook')]),
    (None, [dict(type='mmpsw.ScheduleFreeHook'), dict(type='EMAHook')]),
    (None, [dict(type='mmpsw.LookaheadHook'), dict(type='EMAHook')]),
])
def test_one_average_at_most_is_shown(tmp_path, psw, hooks):
    """Through stock tools too: in the engine."""
    run = runner(tmp_path, psw, hooks=hooks)
    with pytest.raises(ValueError, match='cannot be used together, because '
                       'both put their average into the model'):
        run.train()
    assert run.iter == 0


def test_subclasses_of_an_ema_are_found(tmp_path):
    class Mine(EMAHook):
        pass

    with pytest.raises(ValueError, match='psw.write_back=False and Mine'):
        trained(tmp_path, PSW, hooks=[Mine()])


def log_of(run):
    return ''.join(path.read_text()
                   for path in Path(run.work_dir).glob('*/*.log'))


class Taught(Toy):
    """A student that is trained, and the teacher that predicts."""

    def __init__(self):
        super().__init__()
        self.student = self.net
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)


def test_a_teacher_that_predicts_is_said(tmp_path):
    hooks = pytest.importorskip('mmdet.engine.hooks')
    run = trained(tmp_path, PSW, model=Taught(),
                  hooks=[hooks.MeanTeacherHook()])
    assert log_of(run).count("is the MeanTeacherHook's teacher") == 1


def test_recalibration_needs_batches_to_draw(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([Points()[i] for i in range(24)])

    run = runner(tmp_path, dict(type='PSWA', buffers='recalibrate',
                                by_epoch=False, period=4),
                 dict(by_epoch=False, max_iters=8), validate=False,
                 loader=DataLoader(Stream(), batch_size=4))
    with pytest.raises(ValueError, match='training data set is iterable'):
        run.train()
    assert run.iter == 0


def test_a_recalibrated_average_has_statistics_of_its_own(tmp_path):
    """Those of the forward passes of the average, in mixed precision too."""
    dtypes, losses = set(), Toy.forward

    class Watched(Toy):
        def forward(self, x, y, mode='tensor'):
            if mode == 'loss':
                dtypes.add(torch.is_autocast_enabled('cpu')
                           if x.device.type == 'cpu' else True)
            return losses(self, x, y, mode)

    run = trained(tmp_path, dict(PSW, buffers='recalibrate'),
                  dict(by_epoch=True, max_epochs=1), model=Watched(),
                  validate=False, kind='mmpsw.PSWAmpOptimWrapper')
    assert dtypes == {True}
    resampler = run.optim_wrapper.resampler
    shown = resampler.weights.named(resampler.average)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    model = copy.deepcopy(run.model)
    with torch.no_grad():
        for name, param in model.named_parameters():
            param.copy_(shown[name])
        with torch.autocast(order.device.type, torch.bfloat16):
            means = [model.net[0](here(Points().x[i])).float().mean(0)
                     for i in order.split(4)]
    torch.testing.assert_close(shown['net.1.running_mean'],
                               torch.stack(means).mean(0), rtol=0, atol=2e-2)
    live = run.model.net[1].running_mean
    assert not torch.allclose(shown['net.1.running_mean'], live, atol=2e-2)


# Notebooks


def test_the_same_hooks_serve_one_run_after_another(tmp_path):
    """Other data, other periods; old checkpoints go in each of them."""
    hooks = [PSWHook(), SafeSavingHook()]
    for name, batch, period in (('a', 4, 6), ('b', 8, 3), ('c', 4, 6)):
        run = runner(tmp_path / name, dict(type='PSWA'), hook=False,
                     hooks=hooks, batch_size=batch,
                     checkpoint=dict(interval=1, max_keep_ckpts=1))
        run.train()
        assert run.optim_wrapper.resampler.schedule.period == period
        assert run.optim_wrapper.resampler.resamplings == 4
        assert [path.name for path in (tmp_path / name).glob('*.pth')] == [
            'epoch_4.pth']
    first = torch.load(tmp_path / 'a/epoch_4.pth', weights_only=False)
    last = torch.load(tmp_path / 'c/epoch_4.pth', weights_only=False)
    assert_equal(first['state_dict'], last['state_dict'])


def test_a_run_that_is_tested_after_it_was_trained(tmp_path):
    """The average is tested, and the live weights are back."""
    run = runner(tmp_path, PSW, test_dataloader=dict(
        batch_size=4, dataset=Points(), num_workers=0, collate_fn=dict(
            type='default_collate'), sampler=dict(
                type='DefaultSampler', shuffle=False)),
        test_cfg=dict(), test_evaluator=runner(
            tmp_path / 'x')._val_evaluator)
    run.train()
    live = copy.deepcopy(run.model.state_dict())
    tested = run.test()
    saved = torch.load(tmp_path / 'iter_24.pth', weights_only=False)
    model = Toy().eval()
    model.load_state_dict(saved['state_dict'])
    points = Points()
    with torch.no_grad():
        error = (model.net(points.x) - points.y).square().mean().item()
    assert tested['error'] == pytest.approx(error, rel=1e-4)
    assert_equal(live, run.model.state_dict())


def test_the_lock_outlives_a_copy_of_the_folder(tmp_path):
    """Closing any file of it would give up another kind of lock."""
    trained(tmp_path / 'run', dict(type='PSWA'))
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    second = subprocess.run(
        [sys.executable, '-c', 'import sys\n'
         'from mmpsw.runtime.saving import hold_work_dir\n'
         'hold_work_dir(sys.argv[1])', str(tmp_path / 'run')],
        capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert 'because another process is training there' in second.stderr

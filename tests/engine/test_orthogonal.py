"""OPT in mmengine: runs, checkpoints, averages, and what is left or refused.

Started by torchrun, this file is one of two processes that train.
"""
import copy
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from reference import assert_equal
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader
from toy import Weights, here, runner, trained

from mmpsw import configs
from mmpsw.engine import OrthogonalHook
from mmpsw.methods.orthogonal import (
    MAPS,
    OrthogonalConv2d,
    OrthogonalTraining,
    hyperspherical_energy,
)
from mmpsw.models import build_model

EPOCH = 6


def neurons(weight):
    """As the paper has them, as columns."""
    return weight.flatten(1).T


HOOK = dict(type='mmpsw.OrthogonalHook')
DDP = dict(type='MMDistributedDataParallel', device_ids=None)


class Net(BaseModel):
    """Two convolutions, with batch norm, on points as 2x2 images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.ReLU())
        self.head = nn.Linear(16, 1)

    def forward(self, x, y, mode='tensor'):
        out = self.head(self.convs(x.view(-1, 1, 2, 2)).flatten(1))
        if mode == 'loss':
            return dict(loss=(out - y).square().mean())
        return [(out, y)] if mode == 'predict' else out


class Recorder(Weights):
    """Also the batches, and the weights as an iteration and a validation
    see them."""

    def __init__(self):
        super().__init__()
        self.batches, self.starts, self.shown = [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batches.append(data_batch)
        self.starts.append(copy.deepcopy(runner.model.state_dict()))

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            self.shown.append(copy.deepcopy(runner.model.state_dict()))


def train(tmp_path, hook=HOOK, *args, **keys):
    recorder = Recorder()
    keys.setdefault('checkpoint', dict(interval=4))
    run = trained(tmp_path, *args, model=Net(), hooks=[hook, recorder],
                  **keys)
    return run, recorder


def training_of(run):
    hook, = [hook for hook in run.hooks if isinstance(hook, OrthogonalHook)]
    return hook.trainings['']


def opt(name='cayley', **keys):
    return dict(HOOK, map=name, **keys)


@pytest.mark.parametrize('accumulate', [1, 3])
@pytest.mark.parametrize('name', MAPS)
def test_a_run_is_a_loop_of_ones_own(tmp_path, name, accumulate):
    _, seen = train(tmp_path, opt(name, start='identity'),
                    wrapper=dict(accumulative_counts=accumulate))
    model = Net().to(seen.starts[0]['head.weight'].device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    OrthogonalTraining(
        optimizer, {'0': model.convs[0].weight, '3': model.convs[3].weight},
        name, start='identity')
    for i, (x, y) in enumerate(seen.batches, start=1):
        data = [z.to(model.head.weight.device) for z in
                (torch.stack(tuple(x)), torch.stack(tuple(y)))]
        (model(*data, mode='loss')['loss'] / accumulate).backward()
        if i % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
        assert_equal(model.state_dict(), seen.after[i - 1])


def test_the_neurons_are_those_of_the_config(tmp_path):
    """What was initialised or loaded, and only turned: in each checkpoint
    under the stock names."""
    run, _ = train(tmp_path, opt('gram_schmidt'))
    stock = Net()
    saved = torch.load(tmp_path / 'epoch_4.pth', weights_only=False)
    assert saved['state_dict'].keys() == stock.state_dict().keys()
    for i in (0, 3):
        first, last = stock.convs[i].weight, saved['state_dict'][
            f'convs.{i}.weight']
        assert (first - last).abs().max() > 1e-2
        torch.testing.assert_close(neurons(last).T @ neurons(last),
                                   neurons(first).T @ neurons(first),
                                   rtol=1e-5, atol=1e-5)
        assert abs(hyperspherical_energy(first)
                   / hyperspherical_energy(last) - 1) < 1e-5
    stock.load_state_dict(saved['state_dict'])
    x = torch.randn(5, 4)
    run.model.eval()
    assert torch.equal(stock.eval()(x, None), run.model.cpu()(x, None))


@pytest.mark.parametrize('hook, psw, at', [
    *[(opt(name), None, 'epoch_1') for name in MAPS],
    *[(opt(name), None, 'epoch_2') for name in MAPS],
    *[(opt(name, stochastic=True, period=5), None, 'epoch_2')
      for name in MAPS],
    *[(opt(stochastic=True, period=4), psw, f'iter_{at}')
      for at in (6, 9, 13) for psw in (
          dict(type='PSWA'), dict(type='PWALKS', last=0.5),
          dict(type='PSWA', write_back=False))],
])
def test_resumed_runs_end_as_uninterrupted_ones(tmp_path, hook, psw, at):
    """The rate decays after the first and the second epoch."""
    keys = dict(validate=False, checkpoint=dict(
        interval=1, by_epoch='epoch' in at), param_scheduler=dict(
            type='MultiStepLR', milestones=[1, 2]))
    whole, _ = train(tmp_path / 'whole', hook, psw, **keys)
    rest, _ = train(tmp_path / 'rest', hook, psw, **keys,
                    resume_from=tmp_path / f'whole/{at}.pth')
    assert_equal(whole.model, rest.model)
    one, other = (training_of(run).state_dict() for run in (whole, rest))
    for name, layer in one['layers'].items():
        assert_equal(layer, other['layers'][name])


@pytest.mark.parametrize('hook', [
    dict(type='EMAHook', momentum=0.1, update_buffers=True),
    dict(type='mmpsw.SwitchEMAHook', momentum=0.3),
])
def test_resumed_runs_with_another_average(tmp_path, hook):
    keys = dict(checkpoint=dict(interval=1))
    whole, _ = train(tmp_path / 'whole', Both(hook), **keys)
    rest, _ = train(tmp_path / 'rest', Both(hook), **keys,
                    resume_from=tmp_path / 'whole/epoch_2.pth')
    expected, found = (torch.load(tmp_path / name / 'epoch_4.pth',
                                  weights_only=False)['state_dict']
                       for name in ('whole', 'rest'))
    assert_equal(expected, found)
    assert_equal(whole.model, rest.model)


class Both(Hook):
    """Adds OrthogonalHook beside another one."""

    priority = 'HIGHEST'

    def __init__(self, other):
        self.hooks = other, HOOK

    def before_run(self, runner):
        for hook in self.hooks:
            runner.register_hook(hook)


def assert_turned(run):
    for layer in training_of(run).layers.values():
        q = MAPS['cayley'].q(layer.r)
        torch.testing.assert_close(q @ layer.base.T, neurons(layer.weight),
                                   rtol=1e-5, atol=1e-6)


def mean(states, name):
    return torch.stack([state[name].double() for state in states]).mean(0)


def test_psw_shows_the_mean_of_merged_weights(tmp_path):
    plain, _ = train(tmp_path / 'plain')
    run, seen = train(tmp_path / 'psw', HOOK,
                      dict(type='PSWA', write_back=False))
    assert_equal(plain.model, run.model)
    for epoch, shown in enumerate(seen.shown):
        states = seen.after[epoch * EPOCH:(epoch + 1) * EPOCH]
        for name in ('convs.0.weight', 'convs.3.weight', 'head.weight'):
            torch.testing.assert_close(shown[name].double(),
                                       mean(states, name),
                                       rtol=1e-5, atol=1e-6)
    saved = torch.load(tmp_path / 'psw/epoch_4.pth', weights_only=False)
    assert_equal({k: v.to(saved['state_dict'][k].device)
                  for k, v in seen.shown[-1].items()}, saved['state_dict'])


def test_what_is_written_back_is_turned_on(tmp_path):
    """A mean of turned neurons is no turned W0: it becomes the next W0."""
    run, seen = train(tmp_path, HOOK, dict(type='PSWA'))
    for epoch in range(1, 4):
        states = seen.after[(epoch - 1) * EPOCH:epoch * EPOCH - 1]
        end = seen.shown[epoch - 1]
        assert_equal(end, seen.starts[epoch * EPOCH])
        after = seen.after[epoch * EPOCH]
        for name in ('convs.0.weight', 'convs.3.weight'):
            assert (mean(states, name) - end[name]).abs().max() > 1e-4
            before, now = neurons(end[name]), neurons(after[name])
            torch.testing.assert_close(before.T @ before, now.T @ now,
                                       rtol=1e-4, atol=1e-5)
    last = seen.after[-1]['convs.3.weight']
    first = seen.starts[0]['convs.3.weight']
    assert (neurons(last).norm(dim=0) < neurons(first).norm(dim=0)).all()


@pytest.mark.parametrize('hook', [
    dict(type='EMAHook', momentum=0.1), dict(type='mmpsw.LookaheadHook'),
    dict(type='mmpsw.EpochAverageHook', last=2,
         ema_type='mmpsw.LatestWeightAverage')])
def test_other_averages_are_of_merged_weights(tmp_path, hook):
    run, seen = train(tmp_path, Both(hook))
    assert seen.shown[0].keys() == Net().state_dict().keys()
    if hook['type'] != 'mmpsw.LookaheadHook':
        assert_turned(run)


def test_r_has_the_settings_of_its_weight(tmp_path):
    still = dict(custom_keys={'convs.3': dict(lr_mult=0.)})
    _, seen = train(tmp_path, wrapper=dict(paramwise_cfg=still))
    for name, moves in (('convs.0.weight', True), ('convs.3.weight', False)):
        first, last = seen.starts[0][name], seen.after[-1][name]
        assert torch.equal(first, last) != moves


@pytest.mark.parametrize('device', ['cpu'], indirect=True)
def test_mixed_precision_on_a_cpu(tmp_path):
    run, _ = train(tmp_path, opt(), dict(type='PSWA', write_back=False),
                   kind='mmpsw.PSWAmpOptimWrapper')
    training = training_of(run)
    assert training.updates == 24
    assert max(training.errors().values()) < 1e-5
    assert_turned(run)


def test_the_largest_error_is_logged(tmp_path):
    run, _ = train(tmp_path, opt('loewdin'))
    logged = run.message_hub.get_scalar('train/orthogonal/error')
    errors = training_of(run).errors()
    assert len(logged.data[0]) == 4 and logged.current() == max(
        errors.values()) < 1e-5


def test_only_full_checkpoints_hold_the_maps(tmp_path):
    train(tmp_path, checkpoint=dict(interval=1, save_best='error',
                                    rule='less'))
    best, = tmp_path.glob('best_*.pth')
    assert 'orthogonal' not in torch.load(best, weights_only=False)
    state = torch.load(tmp_path / 'epoch_4.pth', weights_only=False)
    layers = state['orthogonal']['maps']['']['layers']
    assert layers.keys() == {'convs.0', 'convs.3'}
    torch.save(state['orthogonal'], tmp_path / 'plain')
    torch.load(tmp_path / 'plain', weights_only=True)


# What is turned


def layers(**more):
    model = nn.Module()
    model.conv = nn.Conv2d(4, 4, 3)
    model.large = nn.Conv2d(8, 4, 3)
    model.larger = nn.Conv2d(64, 4, 3)
    model.grouped = nn.Conv2d(4, 4, 3, groups=2)
    model.transposed = nn.ConvTranspose2d(4, 4, 3)
    model.line = nn.Conv1d(4, 4, 3)
    model.frozen = nn.Conv2d(4, 4, 3).requires_grad_(False)
    model.one, model.other = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    model.other.weight = model.one.weight
    model.normed = weight_norm(nn.Conv2d(4, 4, 3))
    model.half = nn.Conv2d(4, 4, 3, dtype=torch.bfloat16)
    model.observed = nn.Conv2d(4, 4, 3)
    model.observed.weight_fake_quant = nn.Identity()
    model.point = nn.Conv2d(1, 4, 1)
    model.bbox_head = nn.Conv2d(4, 4, 3)
    for name, layer in more.items():
        setattr(model, name, layer)
    return model


def test_what_is_turned_and_what_is_left():
    whole, drawn, left = OrthogonalHook(max_dim=40)._choose(layers())
    assert list(whole) == ['conv'] and list(drawn) == ['large']
    assert left == dict(
        larger='576 rows', grouped='grouped', transposed='ConvTranspose2d',
        line='Conv1d', frozen='frozen', one='shared weight',
        other='shared weight', normed='parametrized', half='torch.bfloat16',
        observed='quantised', point='one row')
    whole, drawn, left = OrthogonalHook(max_dim=40, share=0)._choose(layers())
    assert not drawn and left['large'] == '72 rows'
    whole, drawn, _ = OrthogonalHook(stochastic=True)._choose(layers())
    assert list(whole) == ['conv'] and list(drawn) == ['large', 'larger']


def test_marked_layers_alone():
    marked = OrthogonalConv2d(4, 4, 3)
    grouped = OrthogonalConv2d(4, 4, 3, groups=2)
    whole, drawn, left = OrthogonalHook()._choose(
        layers(marked=marked, dw=grouped))
    assert list(whole) == ['marked'] and not drawn
    assert left == dict(dw='grouped')
    assert marked.rotated and grouped.rotated


class Offset(Net):
    """Its second convolution starts at zero, as those of offsets do."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.convs[3].weight)
        self.convs[4] = nn.Tanh()  # a ReLU of zeros leads nothing back


def test_a_layer_of_zeros_trains_as_usual(tmp_path):
    """Turned, it would stay zero for ever. A resume leaves it too."""
    keys = dict(model=Offset(), hooks=[HOOK], checkpoint=dict(interval=1))
    whole = trained(tmp_path / 'whole', **keys)
    assert list(training_of(whole).layers) == ['convs.0']
    assert whole.model.convs[3].weight.abs().max() > 1e-2
    rest = trained(tmp_path / 'rest', **dict(keys, model=Offset()),
                   resume_from=tmp_path / 'whole/epoch_2.pth')
    assert_equal(whole.model.state_dict(), rest.model.state_dict())


def test_offsets_of_deformable_convolutions_are_named(monkeypatch):
    from mmdet.models import ResNet
    said = []
    monkeypatch.setattr('mmpsw.engine.orthogonal.print_log',
                        lambda message, **_: said.append(message))
    model = nn.Module()
    model.backbone = ResNet(50, dcn=dict(
        type='DCNv2', deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, True, True))
    model.backbone.init_weights()
    offsets = [name for name, _ in model.named_modules()
               if name.endswith('conv_offset')]
    runner = SimpleNamespace(
        model=model, iter=0, _load_from=None, _resume=False,
        optim_wrapper=OptimWrapper(torch.optim.SGD(model.parameters(), 0.1)))
    hook = OrthogonalHook(max_dim=256)
    hook.before_train(runner)
    assert len(offsets) == 13 and hook.zero == offsets
    assert said[0].count('conv_offset (zero at the start)') == 13


def test_a_refined_start(tmp_path):
    """Neurons of norm 1, whose energy is lower and stays."""
    _, seen = train(tmp_path / 'run', opt(refine=100))
    for name in ('convs.0.weight', 'convs.3.weight'):
        first, last = seen.starts[0][name], seen.after[-1][name]
        energies = [hyperspherical_energy(w) for w in (
            Net().state_dict()[name], first, last)]
        assert energies[1] < energies[0] - 1e-3
        assert abs(energies[2] / energies[1] - 1) < 1e-5
        norms = first.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
    with pytest.raises(ValueError, match='refine=100 is not possible'):
        train(tmp_path / 'given', opt(refine=100),
              load_from=str(tmp_path / 'run/epoch_4.pth'))


def test_a_resume_by_hand_is_refused(tmp_path):
    train(tmp_path / 'whole', checkpoint=dict(interval=2))
    run = runner(tmp_path / 'rest', model=Net(), hooks=[HOOK])
    run.resume(str(tmp_path / 'whole/epoch_2.pth'), resume_optimizer=False)
    with pytest.raises(ValueError, match='use resume=True with load_from'):
        run.train()


def test_the_log_says_which(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmpsw.engine.orthogonal.print_log',
                        lambda message, **_: said.append(message))
    train(tmp_path, opt(max_dim=40), validate=False)
    assert said == ['orthogonal: cayley on 2 convolutions; whole: convs.0; '
                    'in part: convs.3']


# What is refused


def test_a_model_without_a_convolution(tmp_path):
    with pytest.raises(ValueError, match='Toy has no convolution outside of '
                       'its heads for it: train without it'):
        trained(tmp_path, hooks=[HOOK])
    with pytest.raises(ValueError, match='left: convs.0 .9 rows., convs.3 '):
        train(tmp_path, opt(max_dim=1))


def test_two_hooks(tmp_path):
    with pytest.raises(ValueError, match='leave one out of --with'):
        trained(tmp_path, model=Net(), hooks=[HOOK, opt('loewdin')])


@pytest.mark.parametrize('keys, message', [
    (dict(optimizer=dict(type='mmpsw.LpSGD', lr=0.1, sphere_lr=0.01,
                    p=1.2),
          wrapper=dict(constructor='mmpsw.LpSGDConstructor',
                       paramwise_cfg=dict(custom_keys=dict(
                           convs=dict(p=1.2))))),
     'LpSGD cannot train orthogonal maps'),
    (dict(optimizer=dict(type='mmpsw.SGDScheduleFree', lr=0.1)),
     'schedule-free optimizer cannot train orthogonal maps'),
    (dict(hooks=[dict(type='mmpsw.MagnitudePruningHook', target=0.5)]),
     'MagnitudePruningHook cannot be used with OrthogonalHook'),
])
def test_what_orthogonal_maps_do_not_go_with(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, model=Net(), **dict(
            keys, hooks=[HOOK, *keys.get('hooks', ())]))


@pytest.mark.parametrize('before, after, message', [
    (Hook(), HOOK, 'cannot be resumed from with OrthogonalHook'),
    (HOOK, opt('loewdin'), "are by 'cayley', and this run's by 'loewdin'"),
    (HOOK, opt(max_dim=40), 'of other sizes in convs.3'),
])
def test_a_checkpoint_of_another_kind(tmp_path, before, after, message):
    train(tmp_path / 'before', before)
    with pytest.raises(ValueError, match=message):
        train(tmp_path / 'after', after,
              resume_from=tmp_path / 'before/epoch_4.pth')


def test_a_checkpoint_of_the_version_before(tmp_path):
    """Its maps were under the wrapper's name, with `base` for `neurons`."""
    train(tmp_path / 'before')
    path = tmp_path / 'before/epoch_4.pth'
    checkpoint = torch.load(path, weights_only=False)
    checkpoint['orthogonal'] = checkpoint['orthogonal']['maps']
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match='mmpsw before 0.2 saved it'):
        train(tmp_path / 'after', HOOK, resume_from=path)


def test_a_free_matrix_does_not_start_at_random_from_given_weights(tmp_path):
    train(tmp_path / 'before')
    given = dict(load_from=str(tmp_path / 'before/epoch_4.pth'))
    with pytest.raises(ValueError, match="use start='identity'"):
        train(tmp_path / 'a', opt('regulariser'), **given)
    for hook in (opt('regulariser', start='identity'), opt('cayley')):
        _, seen = train(tmp_path / hook['map'], hook, **given)
        state = torch.load(given['load_from'], weights_only=False)
        for name, value in state['state_dict'].items():
            torch.testing.assert_close(seen.starts[0][name].cpu(), value,
                                       rtol=1e-4, atol=1e-5)


# The zoos

IMAGE = 3, 64, 64


def labelled():
    from mmpretrain.structures import DataSample
    return DataSample().set_gt_label(1)


def boxed():
    from mmdet.testing import demo_mm_inputs
    return demo_mm_inputs(1, [IMAGE], num_items=[2])['data_samples'][0]


def segmented():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    return SegDataSample(
        metainfo=dict(img_shape=IMAGE[1:]),
        gt_sem_seg=PixelData(data=torch.randint(0, 19, (1, *IMAGE[1:]))))


@pytest.mark.parametrize('name, sample', [
    ('mmpretrain::resnet/resnet18_8xb32_in1k', labelled),
    ('mmpretrain::resnet/resnet50_8xb32_in1k', labelled),
    ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco', boxed),
    ('mmdet::retinanet/retinanet_r50_fpn_1x_coco', boxed),
    ('mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024', segmented),
    ('mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024', segmented),
])
def test_stock_configs(name, sample, tmp_path):
    """Each trains a step, and the stock model loads what it has saved."""
    cfg = configs.load_config(name)
    cfg.model.pop('pretrained', None)  # nothing is downloaded
    cfg.model.backbone.init_cfg = None
    if name.startswith('mmseg'):  # it pads to the crop's size
        cfg.model.data_preprocessor.size = IMAGE[1:]
    model, stock = build_model(cfg), build_model(cfg)
    data = [dict(inputs=torch.randint(0, 255, IMAGE, dtype=torch.uint8),
                 data_samples=sample()) for _ in range(2)]
    hook, = configs.load_fragment('orthogonal').custom_hooks
    run = trained(
        tmp_path, model=model, hooks=[dict(hook, max_dim=128)],
        loader=DataLoader(data, batch_size=2, collate_fn=pseudo_collate),
        optimizer=cfg.optim_wrapper.optimizer, validate=False,
        train_cfg=dict(by_epoch=True, max_epochs=1))
    training = training_of(run)
    assert len(training.layers) >= 4 and training.updates == 1
    assert max(training.errors().values()) < 1e-5
    saved = torch.load(tmp_path / 'iter_1.pth', weights_only=False)
    stock.load_state_dict(saved['state_dict'])
    x = torch.randn(1, *IMAGE)
    for one, other in zip(stock.eval().extract_feat(here(x)),
                          run.model.eval().extract_feat(here(x))):
        assert torch.equal(one, other)


def test_a_config_marks_its_layers():
    cfg = configs.load_config('mmpretrain::resnet/resnet18_8xb32_in1k')
    cfg.model.backbone.conv_cfg = dict(type='mmpsw.OrthogonalConv2d')
    model = build_model(cfg)
    whole, drawn, left = OrthogonalHook()._choose(model)
    marked = [key for key, layer in model.named_modules()
              if isinstance(layer, OrthogonalConv2d)]
    assert {*whole, *drawn} == {*marked} and len(marked) == 20 and not left


# Several processes


def test_two_processes_hold_the_same_weights(tmp_path):
    """The same bits; and those that DDP's mean gradients lead to."""
    from launching import environment
    subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         '--nproc-per-node', '2', __file__, str(tmp_path)],
        env=environment(), check=True, capture_output=True)
    one, other = (torch.load(tmp_path / f'rank{rank}.pt') for rank in (0, 1))
    for name, value in one.items():
        if 'running' not in name:
            assert torch.equal(value, other[name]), name


def one_of_two(folder):
    torch.distributed.init_process_group('gloo')
    run = trained(folder / 'work', model=Net(), launcher='pytorch',
                  hooks=[opt(stochastic=True, period=5)], validate=False,
                  batch_size=2, cfg=dict(model_wrapper_cfg=DDP))
    state = dict(run.model.module.state_dict())
    for name, layer in training_of(run).layers.items():
        state.update({f'{name}.r': layer.r, f'{name}.base': layer.base})
    torch.save(state, folder / f'rank{get_rank()}.pt')
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    torch.set_num_threads(1)
    assert 'RANK' in os.environ
    one_of_two(Path(sys.argv[1]))


@pytest.mark.parametrize('psw', [
    dict(type='PSWA'), dict(type='PSWA', write_back=False)])
def test_an_average_is_of_the_weights_and_not_of_the_matrices(tmp_path, psw):
    """R goes on as it was, and the average has the model's tensors only."""
    class Matrices(Hook):
        """After each update, before and after PSWHook."""

        def __init__(self, priority):
            self.priority = priority
            self.seen = []

        def after_train_iter(self, runner, *args, **kwargs):
            self.seen.append([layer.r.clone() for layer in
                              training_of(runner).layers.values()])

    before, after = Matrices('HIGHEST'), Matrices('LOWEST')
    run = trained(tmp_path, psw, model=Net(), hooks=[HOOK, before, after],
                  checkpoint=dict(interval=4))
    assert len(before.seen) == 24
    for one, other in zip(before.seen, after.seen):
        assert all(map(torch.equal, one, other))
    named = {id(param) for param in run.model.parameters()}
    resampler = run.optim_wrapper.resampler
    assert {id(param) for param in resampler.weights.params} <= named
    if not resampler.settings.write_back:
        saved = torch.load(tmp_path / 'epoch_4.pth', weights_only=False)
        assert saved['psw']['']['previous'].keys() <= (
            run.model.state_dict().keys())


def test_a_layer_in_no_optimizer_is_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmpsw.engine.orthogonal.print_log',
                        lambda text, *args, **keys: said.append(text))
    model = Net()
    run = runner(tmp_path, model=model, hooks=[HOOK])
    run.optim_wrapper = OptimWrapper(torch.optim.SGD(
        [*model.convs[0].parameters(), *model.head.parameters()], lr=0.05))
    run.train()
    assert said[0] == ('orthogonal: cayley on 1 convolutions; whole: convs.0;'
                       ' left as they are: convs.3 (in no optimizer)')


@pytest.mark.parametrize('hook', [
    HOOK, dict(type='mmpsw.MagnitudePruningHook', target=0.5)])
def test_an_optimizer_inside_of_another_is_refused(tmp_path, hook):
    """It would train no matrix, and keep the momentum of what is masked."""
    torch.distributed.init_process_group(
        'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match='a ZeroRedundancyOptimizer'):
            trained(tmp_path, model=Net(), hooks=[hook], validate=False,
                    optimizer=dict(type='ZeroRedundancyOptimizer',
                                   optimizer_type='SGD', lr=0.05))
    finally:
        torch.distributed.destroy_process_group()

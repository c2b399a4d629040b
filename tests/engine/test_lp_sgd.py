"""LpSGD in mmengine: which weights, at which rates, and whole runs."""
import logging
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from launching import environment
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from reference import assert_equal
from several_processes import DDP
from torch import nn
from toy import Toy, Weights, here, trained

from mmpsw.commands.checks import check_fit
from mmpsw.configs import load_fragment
from mmpsw.engine.lp_sgd import LpSGDHook, norms_behind
from mmpsw.methods.lp_sgd import LpSGD
from mmpsw.methods.sparsity import hoyer

OPTIMIZER = dict(type='mmpsw.LpSGD', lr=0.05, sphere_lr=0.02, p=[1.3, 1.2],
                 momentum=0.9, nesterov=True, weight_decay=1e-3)
WRAPPER = dict(constructor='mmpsw.LpSGDConstructor')
SPARSE = dict(type='mmpsw.SparsityHook', target=0.6, begin=0.1, end=0.9,
              interval=2)


class Net(Toy):
    """Two layers that a normalisation follows, and a last one."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Linear(8, 1))


def train(work_dir, psw=None, hooks=(), **keys):
    keys.setdefault('validate', False)
    wrapper = dict(WRAPPER, **keys.pop('wrapper', {}))
    return trained(work_dir, psw, model=Net(), optimizer=OPTIMIZER,
                   wrapper=wrapper,
                   hooks=[dict(type='mmpsw.LpSGDHook'), *hooks], **keys)


def groups(model, paramwise_cfg=None, **keys):
    """name: (p, lr, weight_decay) of each parameter."""
    optimizer = build_optim_wrapper(model, dict(
        WRAPPER, optimizer=dict(OPTIMIZER, **keys),
        paramwise_cfg=paramwise_cfg)).optimizer
    names = {w: name for name, w in model.named_parameters()}
    return {names[w]: (group['p'], group['lr'], group['weight_decay'])
            for group in optimizer.param_groups for w in group['params']
            }, len(optimizer.param_groups)


def test_what_lies_on_the_sphere():
    found, count = groups(Net())
    assert found.pop('net.0.weight') == (1.3, 0.02, 1e-3)
    assert found.pop('net.3.weight') == (1.2, 0.02, 1e-3)
    assert len(found) == 6
    assert set(found.values()) == {(None, 0.05, 1e-3)}
    assert count == 3  # equal ones are one group


def test_layers_that_the_rule_leaves_out(monkeypatch):
    said = []
    monkeypatch.setattr('mmpsw.engine.lp_sgd.print_log',
                        lambda text, **_: said.append(text))
    conv = partial(nn.Conv2d, 4, 4, 3, bias=False)
    with_norm = dict(
        one_input=nn.Conv2d(1, 4, 3, bias=False), depthwise=conv(groups=4),
        transposed=nn.ConvTranspose2d(4, 4, 3, bias=False),
        biased=nn.Conv2d(4, 4, 3), plain=conv())
    model = nn.ModuleDict({name: nn.Sequential(layer, nn.BatchNorm2d(4))
                           for name, layer in with_norm.items()})
    # A group norm is not indifferent to the scale of single channels.
    model['group'] = nn.Sequential(conv(), nn.GroupNorm(2, 4))
    model['instance'] = nn.Sequential(conv(), nn.InstanceNorm2d(4))
    model['late'] = nn.Sequential(conv(), conv(), nn.ReLU(), nn.BatchNorm2d(
        4), nn.BatchNorm2d(4))
    model['wide'] = nn.Sequential(conv(), nn.BatchNorm2d(8))
    model['before'] = ConvModule(4, 4, 3, norm_cfg=dict(type='BN'), bias=False,
                                 order=('norm', 'conv', 'act'))
    model['parametrised'] = nn.Sequential(
        nn.utils.parametrizations.weight_norm(conv()), nn.BatchNorm2d(4))
    found, _ = groups(model)
    assert [name for name, (p, *_) in found.items() if p] == [
        'plain.0.weight', 'instance.0.weight', 'late.1.weight']
    assert said == ['lp_sgd: without a batch or instance norm behind them, or '
                    'parametrised, and so left to plain SGD: group.0, late.0, '
                    'wide.0, before.conv, parametrised.0']


def pretrained(backbone):
    """With statistics of its own weights, as after a training."""
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.train()
    for seed in range(2):
        backbone(torch.randn(2, 3, 64, 64, generator=torch.Generator(
            ).manual_seed(seed)))
    return backbone


@pytest.mark.parametrize('norm_eval', [True, False])
def test_a_pretrained_backbone_computes_what_it_did(norm_eval):
    """Its norms use the statistics of its old weights."""
    from mmdet.models import ResNet
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = pretrained(ResNet(50, norm_eval=norm_eval))
    wrapper = build_optim_wrapper(model, dict(WRAPPER, optimizer=dict(
        OPTIMIZER, p=[1.2, 1.2, 1.2, 1.2, 1.07])))
    x = torch.randn(2, 3, 64, 64)
    model.train(norm_eval)  # else as in a validation
    with torch.no_grad():
        before = model.backbone(x)
        weight = model.backbone.layer4[2].conv2.weight
        size = weight.norm().item()
        LpSGDHook().before_train(SimpleNamespace(
            optim_wrapper=wrapper, model=model, iter=0))
        assert weight.norm() < size / 10
        for one, other in zip(before, model.backbone(x), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-2)
            assert 1 - torch.cosine_similarity(
                one.flatten(), other.flatten(), 0) < 1e-5


def test_all_norms_behind_a_shared_layer_follow():
    """As in RTMDet's head, with norms of its own for each size."""
    conv = nn.Conv2d(4, 4, 3, bias=False)
    model = nn.ModuleList(
        nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU()) for _ in range(2))
    assert norms_behind(model) == {conv: [model[0][1], model[1][1]]}


def test_a_rate_of_zero_for_all_else():
    found, _ = groups(Net(), dict(custom_keys={'net.0': dict(lr_mult=0.5)}),
                      lr=0.)
    assert found['net.0.weight'][:2] == (1.3, 0.01)
    assert found['net.3.weight'][:2] == (1.2, 0.02)
    assert found['net.6.bias'][:2] == (None, 0.)


def test_a_schedule_that_lifts_the_rate_above_one(tmp_path):
    with pytest.raises(ValueError, match='set the rate on the sphere to 1.'):
        train(tmp_path, param_scheduler=dict(
            type='OneCycleLR', eta_max=1.5, total_steps=24, by_epoch=False))


@pytest.mark.parametrize('at', ['baseline', 'lp_sgd', 'p'])
def test_a_resume_from_another_optimizer(tmp_path, at):
    if at == 'baseline':
        trained(tmp_path / 'a', model=Net(), validate=False)
    else:
        train(tmp_path / 'a')
    with pytest.raises(ValueError, match='LpSGD cannot continue from this '
                       'state, '
                       f'because {"another" if at == "baseline" else "it lie"}'
                       ) if at != 'lp_sgd' else nullcontext():
        trained(tmp_path / 'b', model=Net(), wrapper=WRAPPER, optimizer=dict(
                OPTIMIZER, p=1.5 if at == 'p' else OPTIMIZER['p']),
                hooks=[dict(type='mmpsw.LpSGDHook')], validate=False,
                resume_from=tmp_path / 'a/iter_9.pth')


def test_paramwise_cfg_goes_on_working():
    found, _ = groups(Net(), dict(
        norm_decay_mult=0., custom_keys={
            'net.0': dict(lr_mult=0.5), 'net.3': dict(p=None),
            'net.6.weight': dict(p=1.5, decay_mult=0.)}))
    assert found['net.0.weight'] == (1.3, 0.01, 1e-3)
    assert found['net.1.weight'] == (None, 0.05, 0.)
    assert found['net.3.weight'] == (None, 0.05, 1e-3)
    assert found['net.6.weight'] == (1.5, 0.02, 0.)
    assert found['net.6.bias'] == (None, 0.05, 1e-3)


def test_a_part_that_is_named_has_its_layers_on_the_sphere():
    """Its norms and biases train plainly, as all others do."""
    plain, sphere = (None, 0.05, 1e-3), (1.07, 0.02, 1e-3)
    found, _ = groups(Net(), dict(custom_keys={'net': dict(p=1.07)}))
    assert found == {name: sphere if 'weight' in name and name not in (
        'net.1.weight', 'net.4.weight') else plain for name in found}
    found, _ = groups(Toy(), dict(custom_keys={'net': dict(p=1.07)}))
    assert found['net.0.weight'] == found['net.3.weight'] == sphere


def test_shared_and_frozen_parameters():
    model = Net()
    model.net[3] = model.net[0]
    model.net[6].requires_grad_(False)
    found, _ = groups(model)
    assert sorted(found) == ['net.0.weight', 'net.1.bias', 'net.1.weight',
                             'net.4.bias', 'net.4.weight']


@pytest.mark.parametrize('hook, optimizer, message', [
    (True, dict(type='SGD', lr=0.1), 'LpSGDHook needs LpSGD'),
    (False, dict(type='mmpsw.LpSGD', lr=0.1, p=1.2), 'set optimizer.sphere_'),
    (False, dict(type='mmpsw.LpSGD', sphere_lr=0.1, p=1.2),
     r'set optimizer\.lr'),
    (False, dict(OPTIMIZER, p=0.9), 'p=0.9'),
    (False, dict(OPTIMIZER, p='1.2'), "p='1.2' is not possible"),
    (False, dict(OPTIMIZER, p=[]), r'p=\[\] is not possible'),
    (False, dict(OPTIMIZER, sphere_lr=2), r'lr=2.0 is not .* \[0, 1\)'),
])
def test_bad_settings_are_refused(tmp_path, hook, optimizer, message):
    wrapper = {} if hook else WRAPPER
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, model=Net(), optimizer=optimizer, wrapper=wrapper,
                hooks=[dict(type='mmpsw.LpSGDHook')] * hook, validate=False)


def test_models_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match='nothing to do'):
        groups(Toy())
    model = Net()
    nn.init.zeros_(model.net[3].weight)
    with pytest.raises(ValueError, match=r'Filter 0 of net\.3\.weight'):
        trained(tmp_path, model=model, optimizer=OPTIMIZER, wrapper=WRAPPER,
                hooks=[dict(type='mmpsw.LpSGDHook')], validate=False)


def test_a_stock_run_does_not_resume_from_the_sphere(tmp_path):
    train(tmp_path)
    cfg = Config(dict(resume=True, load_from=str(tmp_path / 'iter_9.pth')))
    with pytest.raises(ValueError, match='LpSGD, .* add --with lp_sgd'):
        check_fit(cfg, Net())
    cfg.custom_hooks = [dict(type='mmpsw.LpSGDHook')]
    check_fit(cfg, Net())
    check_fit(Config(dict(load_from=cfg.load_from)), Net())


def test_the_authors_schedule(tmp_path):
    """24 iterations: the peak at 4, a quarter of it at 8."""
    seen = []

    class Rates(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            groups = runner.optim_wrapper.optimizer.param_groups
            seen.append([group['lr'] for group in groups])

    def run(folder, **keys):
        return trained(tmp_path / folder, model=Net(), optimizer=OPTIMIZER,
                       wrapper=WRAPPER, validate=False, hooks=[
                           dict(type='mmpsw.LpSGDHook', schedule=True),
                           Rates()], **keys)

    whole = run('a', checkpoint=dict(interval=1))
    rates = torch.tensor(seen)
    peak = rates[4]
    assert sorted(peak.tolist()) == pytest.approx([0.02, 0.02, 0.05])
    for at, factor in ((0, 0.02), (2, 0.51), (8, 0.25), (6, 0.625)):
        torch.testing.assert_close(rates[at], factor * peak)
    rest = run('b', resume_from=tmp_path / 'a/epoch_2.pth')
    assert_equal(whole.model, rest.model)
    with pytest.raises(ValueError, match='set param_scheduler='):
        run('c', param_scheduler=dict(type='MultiStepLR', milestones=[1]))


def test_hoyers_sparsity_is_logged(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmpsw.engine.lp_sgd.print_log',
                        lambda text, **keys: said.append(text))
    run = train(tmp_path, validate=True)
    logged = run.message_hub.get_scalar('train/lp_sgd/hoyer')
    expected = [hoyer(run.model.net[i].weight) for i in (0, 3)]
    assert logged.current() == pytest.approx(sum(expected) / 2)
    assert said[-1].endswith(f'sparsity is {logged.current():.3f}')


def test_averages_begin_on_the_sphere(tmp_path):
    """In whichever order --with names them."""
    lookahead = dict(type='mmpsw.LookaheadHook')
    one = train(tmp_path / 'a', hooks=[lookahead])
    other = trained(
        tmp_path / 'b', model=Net(), optimizer=OPTIMIZER, wrapper=WRAPPER,
        hooks=[lookahead, dict(type='mmpsw.LpSGDHook')], validate=False)
    assert_equal(one.model, other.model)


def test_a_run_is_a_loop_by_hand(tmp_path):
    seen, batches = Weights(), []

    class Keep(Weights):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            batches.append(data_batch)

    train(tmp_path, hooks=[seen, Keep()])
    model = here(Net()).train()
    sphere = [model.net[0].weight, model.net[3].weight]
    rest = [w for w in model.parameters()
            if all(w is not other for other in sphere)]
    optimizer = LpSGD(
        [dict(params=[w], p=p, lr=0.02) for w, p in zip(sphere, (1.3, 1.2))]
        + [dict(params=rest)],
        lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)
    for norm, factor in zip((model.net[1], model.net[4]),
                            optimizer.project().values()):
        norm.running_var.add_(norm.eps).mul_(factor**2).sub_(norm.eps)
    for (x, y), after in zip(batches, seen.after, strict=True):
        optimizer.zero_grad()
        model(here(x), here(y), 'loss')['loss'].backward()
        optimizer.step()
        assert_equal(model.state_dict(), after)


def test_what_is_put_on_the_sphere_is_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmpsw.engine.lp_sgd.print_log',
                        lambda text, **_: said.append(text))
    train(tmp_path)
    (text, ) = said
    assert text.startswith('lp_sgd: 2 weights (96 of 137 numbers)')
    assert text.endswith('net.0.weight, net.3.weight')


@pytest.mark.parametrize('psw, kind', [
    (None, None), (dict(type='PWALKS', last=0.5), 'mmpsw.PSWOptimWrapper'),
    (dict(type='PSWA', weighting='linear'), 'mmpsw.PSWOptimWrapper'),
    (dict(type='PSWA', write_back=False), 'mmpsw.PSWOptimWrapper'),
    (dict(type='PSWM'), 'mmpsw.PSWAmpOptimWrapper')])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, psw, kind):
    keys = dict(psw=psw, hooks=[dict(type='mmpsw.RandomStateHook'), SPARSE],
                kind=kind)
    whole = train(tmp_path / 'whole', **keys)
    last = tmp_path / 'whole/iter_24.pth'
    for at in (1, 9, 12, 17):  # 12 is an epoch's end: a resampling
        train(tmp_path / f'{at}', **keys,
              checkpoint=dict(by_epoch=False, interval=24),
              resume_from=tmp_path / f'whole/iter_{at}.pth')
        one, other = (torch.load(path, weights_only=True) for path in (
            last, tmp_path / f'{at}/iter_24.pth'))
        assert_equal(one['state_dict'], other['state_dict'])
        assert_equal(one['sparsity'].pop('masks'),
                     other['sparsity'].pop('masks'))
        assert one['sparsity'] == other['sparsity']
        for mine, its in zip(one['optimizer']['state'].values(),
                             other['optimizer']['state'].values()):
            assert_equal(mine, its)
    assert whole.iter == 24


def test_mixed_precision_on_a_cpu(tmp_path):
    run = train(tmp_path, dict(type='PSWA'), kind='mmpsw.PSWAmpOptimWrapper',
                train_cfg=dict(by_epoch=True, max_epochs=1, val_interval=9),
                checkpoint=dict(interval=-1))
    group = next(g for g in run.optim_wrapper.optimizer.param_groups
                 if g['p'] == 1.2)
    (w, ) = group['params']
    v = run.optim_wrapper.optimizer.state[w]['v']
    assert v.dtype == torch.float32
    norms = v.abs().pow(6).sum(1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_two_processes_hold_the_same_bits(tmp_path):
    logging.disable(logging.NOTSET)
    subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         '--nproc-per-node', '2', __file__, str(tmp_path)],
        env=environment(), check=True, capture_output=True, timeout=300)
    one, other = (torch.load(tmp_path / f'rank{rank}.pt') for rank in (0, 1))
    assert len(one) == 12
    for mine, its in zip(one, other):
        parameters = [key for key in mine if 'running' not in key]
        assert_equal({key: mine[key] for key in parameters},
                     {key: its[key] for key in parameters})
    assert 0.2 < (one[-1]['net.3.weight'] == 0).float().mean() < 0.9


@pytest.mark.parametrize('name', ['lp_sgd', 'lp_sgd_dense',
                                  'lp_sgd:target=0.5,p=[1.4,1.3]'])
def test_fragments_name_both_rates(name):
    fragment = load_fragment(name).to_dict()
    optimizer = fragment['optim_wrapper']['optimizer']
    assert optimizer.pop('_delete_')
    found, _ = groups(Net(), **optimizer)
    assert found['net.0.weight'][0] == optimizer['p'][0]
    assert found['net.0.weight'][1] == optimizer['sphere_lr']
    assert found['net.6.weight'][:2] == (None, optimizer['lr'])


def one_process(folder):
    """What torchrun starts."""
    torch.distributed.init_process_group('gloo')
    seen = Weights()
    train(folder / 'work', dict(type='PWALKS', last=0.5),
          hooks=[SPARSE, seen], launcher='pytorch',
          checkpoint=dict(interval=-1), cfg=dict(model_wrapper_cfg=DDP))
    torch.save([{key.removeprefix('module.'): value
                 for key, value in state.items()} for state in seen.after],
               folder / f'rank{get_rank()}.pt')
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    one_process(Path(sys.argv[1]))

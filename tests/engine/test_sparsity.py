"""Masks in mmengine's runs."""
import copy

import pytest
import tiny_gan
import torch
from mmengine.hooks import Hook
from reference import assert_equal
from torch import nn
from torch.nn.utils import prune
from toy import FUSED, Overflow, Toy, Weights, here, runner, trained

from mmpsw.methods.sparsity import hoyer
from mmpsw.registry import HOOKS

SPARSE = dict(type='mmpsw.SparsityHook', target=0.6, begin=0.25, end=0.75,
              interval=3)
PRUNED = dict(type='mmpsw.MagnitudePruningHook', target=0.5)
LAYERS = 'net.0.weight', 'net.3.weight'


class Watch(Weights):
    """Also keeps the hook's masks and the momentum."""

    def __init__(self, hook):
        super().__init__()
        self.hook = hook
        self.masks = []
        self.momentum = []

    def after_train_iter(self, runner, *args, **kwargs):
        super().after_train_iter(runner, *args, **kwargs)
        self.masks.append(copy.deepcopy(self.hook.masks))
        state = runner.optim_wrapper.optimizer.state
        self.momentum.append({
            name: state[w]['momentum_buffer'].clone()
            for name, w in runner.model.named_parameters()})


def train(tmp_path, hook, *averages, psw=None, **keys):
    hook = HOOKS.build(hook)
    watch = Watch(hook)
    keys.setdefault('validate', False)
    return trained(tmp_path, psw, hooks=[hook, watch, *averages],
                   **keys), hook, watch


def test_masked_weights_and_their_momentum_are_zero(tmp_path):
    """Under stock SGD. 24 updates; masks change at number 7, 10, 13, 16."""
    run, hook, seen = train(tmp_path, SPARSE)
    changes = []
    for i, (masks, weights, momentum) in enumerate(
            zip(seen.masks, seen.after, seen.momentum), start=1):
        for name in LAYERS:
            assert not weights[name][~masks[name]].any()
            assert not momentum[name][~masks[name]].any()
        last = seen.masks[i - 2] if i > 1 else masks
        if any((masks[name] != last[name]).any() for name in LAYERS):
            changes.append(i)
        for name in LAYERS:  # what grows begins without momentum
            grown = masks[name] & ~last[name]
            assert not momentum[name][grown].any()
            assert not weights[name][grown].any()
    assert changes and set(changes) <= {7, 10, 13, 16}
    zeros = 1 - sum(m.sum() for m in hook.masks.values()) / 40
    assert run.message_hub.get_scalar('train/sparsity/zeros').current(
    ) == pytest.approx(zeros.item())


def test_a_step_that_is_skipped_changes_no_masks(tmp_path):
    """A scaler has a fused optimizer skip the 2nd, the 6th, ... of 24."""
    _, hook, seen = train(tmp_path, SPARSE, Overflow(), **FUSED)
    assert hook.updates == 18
    for i in range(1, 24, 4):
        assert_equal(seen.masks[i - 1], seen.masks[i])


def test_the_first_mask_is_there_in_the_first_step(tmp_path):
    _, _, seen = train(tmp_path, dict(SPARSE, initial=0.3))
    masked = [int((~seen.masks[0][name]).sum()) for name in LAYERS]
    assert masked == [10, 3]  # ceil of 0.3 times 32, and times 8


def test_a_change_by_hand(tmp_path):
    """Eight filters of four: what is small goes, large gradients grow."""
    model = Toy()
    model.net = nn.Sequential(nn.Linear(4, 8, bias=False))
    start = model.net[0].weight.detach().clone()
    hook = HOOKS.build(dict(SPARSE, initial=0.25, begin=0, fraction=0.9))
    batches = []

    class Keep(Weights):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            batches.append(data_batch)
            self.first = hook.masks['net.0.weight'].cpu()

    keep = Keep()
    trained(tmp_path, hooks=[hook, keep], model=model, validate=False,
            optimizer=dict(type='SGD', lr=1e-9),
            train_cfg=dict(by_epoch=False, max_iters=1))
    (x, y), = batches
    weight = (start * keep.first).requires_grad_()
    (x @ weight.T - y).square().mean().backward()
    score = weight.grad.abs() / weight.grad.norm(dim=1, keepdim=True)
    left, dropped = keep.first.clone(), 0
    for row, mask in enumerate(left):
        mean = start[row, mask].abs().mean()
        for column in mask.nonzero().flatten().tolist():
            if start[row, column].abs() < 0.9 * mean:
                left[row, column] = False
                dropped += 1
    masked = [place for place, on in enumerate(left.flatten()) if not on]
    grown = sorted(masked, key=lambda place: -score.flatten()[place])[
        :int(0.95 * dropped)]
    expected = left.clone().flatten()
    expected[grown] = True
    assert dropped > 5
    assert torch.equal(hook.masks['net.0.weight'].cpu().flatten(), expected)
    zeros = 1 - expected.float().mean().item()
    change = 0.9 if zeros < 0.6 * (1 - 0.9 / 2) else 1.1
    assert hook.ratio == pytest.approx(change * zeros / 0.6)


def test_the_saved_weights_are_masked_and_a_stock_model_loads_them(tmp_path):
    run, hook, _ = train(tmp_path, SPARSE, psw=dict(type='PSWA'))
    saved = torch.load(tmp_path / 'iter_24.pth', weights_only=True)
    Toy().load_state_dict(saved['state_dict'])
    assert_equal(saved['state_dict'], run.model.cpu().state_dict())
    for name in LAYERS:
        assert torch.equal(saved['sparsity']['masks'][name],
                           hook.masks[name].cpu())
        assert not saved['state_dict'][name][~hook.masks[name].cpu()].any()


EMA = dict(type='EMAHook', momentum=0.1)
LAWA = dict(type='mmpsw.EpochAverageHook', last=3,
            ema_type='mmpsw.LatestWeightAverage')
FREE = dict(type='mmpsw.ScheduleFreeHook', recalibrate_batches=2)
SCHEDULE_FREE = dict(type='mmpsw.SGDScheduleFree', lr=0.1, momentum=0.9)
CONTROL = dict(type='PSWA', write_back=False)


class Shown(Hook):
    """What is validated and saved, each time, with the masks of then."""

    priority = 'LOWEST'

    def __init__(self, hook):
        self.hook = hook
        self.seen = []

    def before_val_epoch(self, runner):
        self.keep(runner.model.state_dict())

    def before_save_checkpoint(self, runner, checkpoint):
        self.keep(checkpoint['state_dict'])
        self.keep({name.removeprefix('module.'): weight for name, weight
                   in checkpoint.get('ema_state_dict', {}).items()})

    def keep(self, state):
        self.seen += [(state[name].cpu().clone(), self.hook.masks[name].cpu())
                      for name in LAYERS if name in state]


@pytest.mark.parametrize('average, keys', [
    ([EMA], {}), ([LAWA], {}), ([dict(type='mmpsw.LookaheadHook')], {}),
    ([dict(type='mmpsw.SwitchEMAHook', momentum=0.1)], {}),
    ([], dict(psw=CONTROL)),
    ([], dict(psw=dict(type='PSWA', period=5, evaluate='average'))),
    ([FREE], dict(optimizer=SCHEDULE_FREE))])
@pytest.mark.parametrize('hook', [PRUNED, SPARSE])
def test_averages_are_masked_as_the_weights_are(tmp_path, hook, average,
                                                keys):
    """They are what is validated and saved."""
    hook = HOOKS.build(hook)
    shown = Shown(hook)
    trained(tmp_path, hooks=[hook, shown, *average], **keys)
    assert len(shown.seen) >= 20
    assert any(not mask.all() for _, mask in shown.seen)
    for weight, mask in shown.seen:
        assert weight.any() and not weight[~mask].any()


@pytest.mark.parametrize('per_layer', [False, True])
def test_magnitude_pruning_is_torchs(tmp_path, per_layer):
    """After half of 24 updates, with the weights of the 13th."""
    target = 0.55
    _, hook, seen = train(tmp_path, dict(
        type='mmpsw.MagnitudePruningHook', target=target,
        per_layer=per_layer))
    assert all(m.all() for masks in seen.masks[:12] for m in masks.values())
    _, _, free = train(tmp_path / 'free', dict(
        type='mmpsw.MagnitudePruningHook', target=target, begin=0.99))
    model = here(Toy())
    model.load_state_dict(free.after[12])
    layers = model.net[0], model.net[3]
    if per_layer:
        for layer in layers:
            prune.l1_unstructured(layer, 'weight', amount=target)
    else:
        prune.global_unstructured([(layer, 'weight') for layer in layers],
                                  prune.L1Unstructured, amount=target)
    for name, layer in zip(LAYERS, layers):
        for masks in seen.masks[12:]:
            assert torch.equal(masks[name], layer.weight_mask.bool())
        assert torch.equal(seen.after[12][name], layer.weight)
        assert not seen.after[-1][name][~hook.masks[name]].any()


@pytest.mark.parametrize('hook', [SPARSE, PRUNED])
@pytest.mark.parametrize('keys, averages', [
    ({}, []), (dict(optimizer=dict(type='AdamW', lr=0.01)), []),
    ({}, [EMA]), ({}, [LAWA])])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, hook, keys,
                                                averages):
    keys = dict(keys, validate=False, hooks=[
        dict(type='mmpsw.RandomStateHook'), hook, *averages])
    whole = trained(tmp_path / 'whole', **copy.deepcopy(keys))
    expected = torch.load(tmp_path / 'whole/iter_24.pth', weights_only=True)
    for at in (4, 6, 10, 14):
        resumed = trained(
            tmp_path / str(at), **copy.deepcopy(keys),
            checkpoint=dict(by_epoch=False, interval=24),
            resume_from=tmp_path / f'whole/iter_{at}.pth')
        assert_equal(whole.model, resumed.model)
        found = torch.load(tmp_path / f'{at}/iter_24.pth', weights_only=True)
        assert_equal(expected['state_dict'], found['state_dict'])


@pytest.mark.parametrize('hook', [SPARSE, PRUNED])
def test_masks_go_on_where_a_runner_is_told_to_resume(tmp_path, hook):
    """By its method, which does not set what the key of a config sets."""
    whole, first, _ = train(tmp_path / 'whole', hook,
                            checkpoint=dict(interval=1))
    again = HOOKS.build(hook)
    run = runner(tmp_path / 'rest', hooks=[again], validate=False)
    run.resume(str(tmp_path / 'whole/epoch_3.pth'))
    run.train()
    for name in LAYERS:
        assert torch.equal(first.masks[name], again.masks[name])
    assert_equal(whole.model, run.model)


@pytest.mark.parametrize('before, after', [
    (PRUNED, SPARSE), (SPARSE, PRUNED), (dict(type='EMAHook'), SPARSE)])
def test_no_run_resumes_without_its_masks(tmp_path, before, after):
    trained(tmp_path / 'a', hooks=[before], validate=False)
    with pytest.raises(ValueError, match='no masks of this kind.*load_from'):
        trained(tmp_path / 'b', hooks=[after], validate=False,
                resume_from=tmp_path / 'a/iter_6.pth')
    run = trained(tmp_path / 'c', hooks=[after], validate=False,
                  load_from=str(tmp_path / 'a/iter_6.pth'))
    assert run.iter == 24


def test_each_layer_is_logged_at_the_end(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmpsw.engine.sparsity.print_log',
                        lambda text, **_: said.append(text))
    run, _, _ = train(tmp_path, SPARSE)
    weight = run.model.net[0].weight
    zeros = (weight == 0).float().mean().item()
    assert said[-1].splitlines()[1] == (
        f'net.0.weight: {zeros:.3f}, {hoyer(weight):.3f}')


@pytest.mark.parametrize('hook, message', [
    (dict(SPARSE, target=0), 'target=0 is not possible'),
    (dict(SPARSE, target=1.), 'target=1.0'),
    (dict(SPARSE, initial=1.), 'initial=1.0'),
    (dict(SPARSE, begin=0.8), 'begin=0.8, end=0.75'),
    (dict(SPARSE, interval=0), 'interval=0'),
    (dict(type='mmpsw.MagnitudePruningHook', target=0.5, begin=1), 'begin=1'),
])
def test_bad_settings_are_refused(hook, message):
    with pytest.raises(ValueError, match=message):
        HOOKS.build(hook)


def test_a_model_without_layers_to_mask_is_refused(tmp_path):
    model = Toy()
    model.net = nn.BatchNorm1d(4)
    with pytest.raises(ValueError, match='nothing to mask'):
        train(tmp_path, SPARSE, model=model)


def test_a_shared_layer_is_saved_masked_under_all_its_names(tmp_path):
    model = Toy()
    model.net.extend([nn.Linear(1, 8), model.net[3]])
    hook = HOOKS.build(PRUNED)  # after 12; the average is that of 7 to 12
    trained(tmp_path, model=model, hooks=[hook], psw=CONTROL)
    saved = torch.load(tmp_path / 'iter_15.pth', weights_only=True)
    for name in 'net.3.weight', 'net.5.weight':
        weight = saved['state_dict'][name]
        assert not weight[~hook.masks['net.3.weight'].cpu()].any()


def test_two_of_them_are_refused(tmp_path):
    with pytest.raises(ValueError, match='Two hooks cannot mask'):
        trained(tmp_path, hooks=[SPARSE, PRUNED])


@pytest.mark.parametrize('hook', [SPARSE, PRUNED])
def test_several_optimizers_are_refused(tmp_path, hook):
    with pytest.raises(ValueError, match='needs one optimizer.*has several'):
        tiny_gan.runner(tmp_path, hooks=[hook]).train()


class Parametrised(Toy):
    """The first layer's weight is computed from a size and a direction."""

    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.net[0])


@pytest.mark.parametrize('hook', [SPARSE, PRUNED])
def test_parametrised_layers_are_left_and_named(tmp_path, hook, monkeypatch):
    said = []
    monkeypatch.setattr('mmpsw.engine.sparsity.print_log',
                        lambda text, *args, **keys: said.append(text))
    run, hook, _ = train(tmp_path, hook, model=Parametrised())
    assert said[0] == 'sparsity: parametrised, and so not masked: net.0'
    zeros = (run.model.net[3].weight == 0).float().mean().item()
    assert hook.zeros == pytest.approx(zeros) and zeros > 0.3

"""Every config that the three installed zoos ship. It takes an hour:

    python -m pytest tests/test_zoo.py -m zoo -s
"""
import copy
import gc
import random
from collections import defaultdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import set_random_seed
from mmengine.structures import PixelData
from scripts import script

from mmpsw import configs
from mmpsw.engine.averaging.follower import Follower
from mmpsw.engine.averaging.statistics import owned_statistics
from mmpsw.models import build_model

pytestmark = [pytest.mark.zoo, pytest.mark.timeout(3 * 3600),
              pytest.mark.filterwarnings('ignore')]
benchmark = script('benchmark.py')
METHODS = dict(pwalks=dict(type='PWALKS', last=0.25),
               psw=dict(type='PSWA', write_back=False))
STEPPED, LARGEST = 75, 60e6  # models, parameters


def zoo():
    """The names of all configs that somebody could train."""
    for package in filter(find_spec, configs.FRAMEWORKS):
        root = Path(find_spec(package).origin).parent / '.mim/configs'
        for path in sorted(root.rglob('*.py')):
            if '_base_' not in path.parts:
                yield f'{package}::{path.relative_to(root).as_posix()}'


def outcome(name, method, amp):
    """What becomes of a config ``--with METHOD``."""
    try:
        cfg = Config.fromfile(configs.resolve_config(name))
    except Exception as error:
        return f'fails in stock too: {type(error).__name__}'
    if not cfg.get('optim_wrapper') or not cfg.get('train_cfg'):
        return 'has no training part'
    stock = copy.deepcopy(cfg)
    try:
        configs.apply_fragments(cfg, [configs.load_fragment(method)], amp)
    except ValueError as error:
        refused = stock.get('runner_type') == 'FlexibleRunner'
        return 'refused: FSDP or DeepSpeed' if refused else f'OURS: {error}'
    except Exception as error:
        return f'OURS: {error!r}'
    right = is_as_it_should(cfg, stock, METHODS[method], amp)
    return 'works' if right else 'OURS: wrong'


def is_as_it_should(cfg, stock, psw, amp):
    """Each optimizer's wrapper is ours, and nothing else has changed.

    But for psw, which takes the place of a config's own EMAHook.
    """
    cfg = copy.deepcopy(cfg)
    hook, *others = cfg.pop('custom_hooks')
    left = [one for one in stock.pop('custom_hooks', None) or []
            if psw.get('write_back', True)
            or configs.class_name(one['type']) != 'EMAHook']
    if hook['type'] != 'mmpsw.PSWHook' or others != left:
        return False
    for (_, ours), (_, theirs) in zip(configs.optim_wrappers(cfg),
                                      configs.optim_wrappers(stock)):
        mixed = amp or 'Amp' in str(theirs.get('type'))
        name = f'mmpsw.PSW{"Amp" if mixed else ""}OptimWrapper'
        if ours.pop('type') != name or ours.pop('psw') != psw:
            return False
        theirs.pop('type', None)
        if amp:
            theirs.setdefault('loss_scale', 'dynamic')
    return cfg.to_dict() == stock.to_dict()


@cache
def outcomes(method, amp):
    found = defaultdict(list)
    for name in zoo():
        found[outcome(name, method, amp)].append(name)
    return found


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('amp', [False, True])
def test_it_goes_into_every_config(method, amp):
    found = outcomes(method, amp)
    total = sum(map(len, found.values()))
    print(f'\n--with {method}{" --amp" * amp}, of {total}'
          ' configs:')
    for what, names in sorted(found.items()):
        print(f'{len(names):5} {what}')
        if what != 'works':
            print('      ' + ' '.join(names))
    assert not [what for what in found if what.startswith('OURS')]
    assert len(found['works']) > 0.9 * total


def batch_of(cfg):
    """Two noise images with labels, boxes and masks."""
    size = 224 if cfg.default_scope == 'mmpretrain' else 128
    batch = benchmark.synthetic_batch(cfg, 2, size)
    if cfg.default_scope == 'mmdet':
        from mmdet.structures.mask import BitmapMasks
        for sample in batch['data_samples']:
            sample.gt_instances.masks = BitmapMasks(
                np.ones((1, size, size), np.uint8), size, size)
            sample.gt_sem_seg = PixelData(
                sem_seg=torch.zeros(1, size, size, dtype=torch.uint8))
    benchmark.set_input_size(cfg, size)
    return batch


def steps(cfg, model, batch, psw=None):
    """Three updates; the weights after each."""
    settings = {key: value for key, value in cfg.optim_wrapper.items()
                if key in ('optimizer', 'constructor', 'paramwise_cfg',
                           'clip_grad')}
    if psw is not None:
        settings.update(type='mmpsw.PSWOptimWrapper', psw=psw)
    wrapper = build_optim_wrapper(model, copy.deepcopy(settings))
    if psw is not None:
        owned = owned_statistics(model, {'': wrapper.optimizer})['']
        wrapper.follower = Follower(
            wrapper.psw, wrapper.optimizer, epoch_length=3, statistics=owned)
    wrapper.initialize_count_status(model, 0, 3)
    set_random_seed(0)
    for iteration in (1, 2, 3):
        model.train_step(copy.deepcopy(batch), wrapper)
        if psw is not None:
            wrapper.follower.after_iteration(iteration)
        yield {name: param.detach().clone()
               for name, param in model.named_parameters()}


def stepped(name):
    """Whether the stock config takes steps here; PSW must then, too.

    A period of three updates, of which the last two are averaged: it ends
    with the mean of the weights that the stock run has there.
    """
    cfg = configs.load_config(name)
    try:
        batch = batch_of(cfg)
        model = build_model(cfg).train()
        if sum(param.numel() for param in model.parameters()) > LARGEST:
            return 'too large'
        other = copy.deepcopy(model)
        _, second, third = steps(cfg, model, batch)
        if not all(value.isfinite().all() for value in third.values()):
            return 'not finite in stock'
    except Exception as error:
        return f'fails in stock too: {type(error).__name__}'
    *_, last = steps(cfg, other, batch, dict(type='PWALKS', last=2))
    for key, value in last.items():
        if other.get_parameter(key).requires_grad:
            torch.testing.assert_close(value, (second[key] + third[key]) / 2,
                                       rtol=1e-4, atol=1e-5)
    return 'works'


def test_random_ones_are_built_and_stepped():
    names = outcomes('pwalks', False)['works']
    random.Random(0).shuffle(names)
    found = defaultdict(list)
    for name in names:
        try:
            result = stepped(name)
        except Exception as error:
            result = f'OURS: {error!r}'
        found[result].append(name)
        print(len(found['works']), name, result[:200], flush=True)
        gc.collect()
        if len(found['works']) == STEPPED:
            break
    print({what: len(names) for what, names in found.items()})
    assert not [what for what in found if what.startswith('OURS')]
    assert len(found['works']) == STEPPED

"""What is said before anything is built."""
import importlib.util
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import PretrainedInit

from mmpsw.commands import checks, launch
from mmpsw.models import build_model, saved_tensors

VIT = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(
        type='mmpretrain.VisionTransformer', patch_size=16, img_size=64,
        arch=dict(embed_dims=16, num_layers=1, num_heads=2,
                  feedforward_channels=16)),
    head=dict(type='mmpretrain.VisionTransformerClsHead', num_classes=3,
              in_channels=16))
SWIN = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(
        type='mmpretrain.SwinTransformer', img_size=64, patch_size=4,
        window_size=4, arch=dict(embed_dims=8, depths=[1, 1, 1, 1],
                                 num_heads=[1, 1, 1, 1])),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=64))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Weights that fit


def model(settings, **backbone):
    cfg = Config(dict(model=settings, default_scope='mmpretrain'))
    cfg.model.backbone.update(backbone)
    return build_model(cfg)


def save(weights):
    torch.save(dict(state_dict=weights, meta=dict()), 'a.pth')
    return Config(dict(load_from='a.pth'))


@pytest.mark.parametrize('settings, other', [
    (VIT, dict(img_size=32)), (SWIN, dict(window_size=2))])
def test_weights_that_a_model_converts_while_it_loads_them(settings, other):
    """ViT's position embeddings at another size, Swin's bias tables."""
    cfg = save(model(settings).state_dict())
    wanted = model(settings, **other)
    shapes = [[*map(lambda one: one.shape, one.state_dict().values())]
              for one in (model(settings), wanted)]
    assert shapes[0] != shapes[1]
    checks.check_fit(cfg, wanted, whole=True)


def test_a_two_stage_detectors_rpn_in_a_one_stage_model():
    cfg = Config.fromfile(Path(__file__).resolve().parents[2]
                          / 'configs/study/retinanet_r18_digits.py')
    wanted = build_model(cfg)
    cfg = save({name.replace('bbox_head.', 'rpn_head.'): tensor
                for name, tensor in wanted.state_dict().items()})
    checks.check_fit(cfg, wanted, whole=True)
    narrow = save({name: torch.ones(7, 7, 7) if 'tracked' not in name else
                   tensor for name, tensor in wanted.state_dict().items()})
    with pytest.raises(ValueError, match='no weight of one name and size in'):
        checks.check_fit(narrow, wanted)


def test_weights_that_do_not_fit():
    wanted = model(VIT)
    held = wanted.state_dict()
    cfg = save({**held, 'head.layers.head.weight': torch.ones(5, 16)})
    with pytest.raises(ValueError, match="'head.layers.head.weight' in it: "
                       r'copying a param with shape torch.Size\(\[5, 16'):
        checks.check_fit(cfg, wanted, whole=True)
    checks.check_fit(cfg, wanted)  # a training may begin with the others
    del held['head.layers.head.bias'], held['backbone.cls_token']
    with pytest.raises(ValueError, match="it lacks 'backbone.cls_token'"):
        checks.check_fit(save(held), wanted, whole=True)
    with pytest.raises(ValueError, match='no weight of one name and size in'):
        checks.check_fit(save(dict(w=torch.ones(1))), wanted)


def test_what_is_not_trained_may_be_missing():
    wanted = model(VIT)
    wanted.backbone.cls_token.requires_grad = False
    held = {name: tensor for name, tensor in saved_tensors(wanted).items()
            if name != 'backbone.cls_token'}
    checks.check_fit(save(held), wanted, whole=True)


# What a part of a model begins with


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])
def test_weights_under_another_name_than_mmengines(kind):
    """The official Swin and PVT have them under 'model'."""
    torch.save(dict(model=dict(w=torch.ones(1))), 'a.pth')
    part = dict(init_cfg=dict(type=kind, checkpoint='a.pth'))
    checks.check_pretrained(part)
    Path('a.pth').write_text('no checkpoint')
    with pytest.raises(ValueError, match='no checkpoint'):
        checks.check_pretrained(part)


# Names


SGD = dict(type='SGD', lr=0.1)
PSW = dict(type='mmpsw.PSWOptimWrapper', optimizer=SGD, psw=dict(type='PSWA'))


@pytest.mark.parametrize('settings, message', [
    (dict(optim_wrapper=PSW, custom_hooks=[dict(type='PSWHook')]),
     "custom_hooks.0.type='PSWHook' would not be found, because mmengine "
     "looks for it in its own registries; write 'mmpsw.PSWHook'"),
    (dict(optim_wrapper=dict(PSW, type='PSWOptimWrapper')),
     "optim_wrapper.type='PSWOptimWrapper' would not be found"),
    (dict(optim_wrapper=dict(optimizer=dict(type='SGDScheduleFree', lr=1.))),
     "optim_wrapper.optimizer.type='SGDScheduleFree' would not be found"),
    (dict(optim_wrapper=PSW),
     'optim_wrapper.type=PSWOptimWrapper needs PSWHook, which tells it of the '
     "run; add dict(type='mmpsw.PSWHook') to custom_hooks"),
    (dict(optim_wrapper=dict(optimizer=SGD),
          custom_hooks=[dict(type='mmpsw.ScheduleFreeHook')]),
     "custom_hooks.0.type='mmpsw.ScheduleFreeHook' needs schedulefree, which "
     'is not installed'),
    (dict(optim_wrapper=dict(optimizer=dict(type='mmpsw.SGDScheduleFree'))),
     "optimizer.type='mmpsw.SGDScheduleFree' needs schedulefree"),
])
def test_names_that_would_not_be_found(settings, message, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(checks, 'find_spec', lambda name: (
        None if name == 'schedulefree' else find(name)))
    with pytest.raises(ValueError) as info:
        checks.check_training(Config(settings))
    assert message in str(info.value)


@pytest.mark.parametrize('scope, package', [
    ('mmpose', 'mmpose'), ('mmaction', 'mmaction2'), ('mmyolo', 'mmyolo')])
def test_a_default_scope_that_is_not_installed(scope, package):
    with pytest.raises(ValueError) as info:
        launch._check_framework(Config(dict(default_scope=scope)))
    assert str(info.value) == (
        f"default_scope='{scope}' needs {scope}, which is not installed; pip "
        f'install {package}')
    launch._check_framework(Config(dict(default_scope='my_own')))

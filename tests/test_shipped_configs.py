"""Each leaf is its stock baseline, but for the PSW entries."""
import ast
import copy
import functools
from pathlib import Path

import pytest
from mmengine.config import Config

from mmpsw import configs

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
TECHNIQUES = ('pswa', 'pwalks', 'pswm')
LEAVES = sorted(
    path for technique in TECHNIQUES
    for path in CONFIGS.glob(f'[a-z]*/*_{technique}.py'))
BASELINES = [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco',
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco',
    'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024',
    'mmseg::pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512',
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024',
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-20k_voc12aug-512x512',
    'mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024',
    'mmpretrain::resnet/resnet50_8xb32_in1k',
    'mmpretrain::resnet/resnet18_8xb16_cifar10',
    'cls/resnet18_8xb16_cifar100',
    'cls/vgg16bn_8xb16_cifar10',
    'cls/vgg16bn_8xb16_cifar100',
]


@functools.cache
def read(path):
    """mmengine reads all of a zoo's index for each of its configs: once."""
    return Config.fromfile(path)


def load(path):
    return copy.deepcopy(read(str(path)))


def plain(node):
    """A config as dicts, without the marks that inheritance leaves."""
    if isinstance(node, dict):
        return {
            key: plain(value)
            for key, value in node.items() if key != '_scope_'
        }
    if isinstance(node, (list, tuple)):
        return [plain(item) for item in node]
    return node


def without_psw(cfg):
    """A config as dicts, without the four PSW entries."""
    cfg = plain(cfg.to_dict() if isinstance(cfg, Config) else cfg)
    cfg.pop('psw', None)
    for key in ('psw', 'type'):
        cfg['optim_wrapper'].pop(key, None)
    hooks = [
        hook for hook in cfg.pop('custom_hooks', None) or []
        if hook['type'] != 'mmpsw.PSWHook'
    ]
    return {**cfg, 'custom_hooks': hooks}


def baseline_of(leaf):
    """The first base that a leaf names, resolved."""
    for node in ast.parse(leaf.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            name = ast.literal_eval(node.value)[0]
            return configs.resolve_config(
                name if '::' in name else leaf.parent / name)
    raise AssertionError(f'{leaf} has no _base_')


def resolve(name):
    return configs.resolve_config(name if '::' in name else CONFIGS /
                              f'{name}.py')


@pytest.mark.parametrize('leaf', LEAVES, ids=lambda path: path.stem)
def test_a_leaf_differs_in_the_psw_entries_only(leaf):
    technique = leaf.stem.rpartition('_')[2]
    cfg = load(leaf)
    stock = load(baseline_of(leaf))
    assert without_psw(cfg) == without_psw(stock)
    assert stock.optim_wrapper.get('type', 'OptimWrapper') == 'OptimWrapper'
    assert cfg.optim_wrapper.type == 'mmpsw.PSWOptimWrapper'
    assert cfg.optim_wrapper.psw == configs.load_fragment(technique).psw
    assert plain(cfg.custom_hooks)[0] == {'type': 'mmpsw.PSWHook'}


def test_there_is_a_leaf_for_every_baseline():
    assert {resolve(name)
            for name in BASELINES} <= {baseline_of(leaf)
                                       for leaf in LEAVES}


@pytest.mark.parametrize('name', BASELINES)
def test_an_option_makes_of_the_baseline_what_the_leaf_says(name):
    leaf = next(leaf for leaf in LEAVES if baseline_of(leaf) == resolve(name))
    for technique in TECHNIQUES:
        cfg = load(resolve(name))
        fragment = configs.load_fragment(technique)
        configs.apply_fragments(cfg, [fragment])
        expected = load(leaf)
        expected.pop('psw')
        expected.optim_wrapper.psw = fragment.psw
        assert plain(cfg.to_dict()) == plain(expected.to_dict())


@pytest.mark.parametrize(
    'path', sorted(CONFIGS.rglob('*.py')), ids=lambda path: path.stem)
def test_a_config_can_be_read(path):
    # The baseline's arm adds nothing, which is what a baseline is.
    assert len(load(path)) > 0 or path.stem == 'baseline'

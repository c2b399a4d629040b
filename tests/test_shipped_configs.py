"""Each config in det, seg and cls is a stock baseline with psw, no more."""
import ast
import copy
import functools
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from mmpsw import configs

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
LEAVES = sorted(CONFIGS.glob('[a-z]*/*_psw.py'))
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
    'mmpretrain::resnet/resnet50_8xb16_cifar100',
    'mmpretrain::vgg/vgg16bn_8xb32_in1k',
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
        return {key: plain(value) for key, value in node.items()
                if key != '_scope_'}
    if isinstance(node, (list, tuple)):
        return [plain(item) for item in node]
    return node


def baseline_of(leaf):
    """The first base that a leaf names, resolved."""
    name = next(
        ast.literal_eval(node.value)[0]
        for node in ast.parse(leaf.read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_')
    return configs.resolve_config(
        name if '::' in name else leaf.parent / name)


@pytest.mark.parametrize('leaf', LEAVES, ids=lambda path: path.stem)
def test_a_leaf_is_its_baseline_with_the_technique(leaf):
    cfg, stock = load(leaf), load(baseline_of(leaf))
    assert 'psw' not in str(stock.to_dict()).lower()
    fragment = configs.load_fragment(leaf.stem.rpartition('_')[2])
    configs.apply_fragments(stock, [fragment])
    assert plain(cfg.to_dict()) == plain({**stock.to_dict(),
                                          'psw': fragment.psw})


@pytest.mark.parametrize('framework', ['det', 'seg', 'cls'])
def test_the_metafile_names_them_all(framework):
    """In the form that mim reads; the weights are those of the baselines."""
    metafile = CONFIGS / framework / 'metafile.yml'
    content = yaml.safe_load(metafile.read_text())
    named = {model['Config']: model for model in content['Models']}
    assert set(named) == {f'configs/{framework}/{leaf.name}'
                          for leaf in LEAVES if leaf.parent.name == framework}
    for path, model in named.items():
        assert model['Name'] == Path(path).stem
        assert model['In Collection'] == content['Collections'][0]['Name']


def test_there_is_a_leaf_for_every_baseline():
    assert {configs.resolve_config(name) for name in BASELINES
            } <= {baseline_of(leaf) for leaf in LEAVES}


@pytest.mark.parametrize(
    'path', sorted(CONFIGS.rglob('*.py')), ids=lambda path: path.stem)
def test_a_config_can_be_read(path):
    # The baseline's fragment adds nothing, which is what a baseline is.
    assert len(load(path)) > 0 or path.stem == 'baseline'

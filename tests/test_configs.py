"""Configs are found by name; PSW goes into the configs of three zoos."""
import copy
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmpsw import configs, registry
from mmpsw.compatibility import distribution
from mmpsw.models import build_model

STOCK = [  # of each zoo some that differ in what PSW touches
    'mmdet::retinanet/retinanet_r50_fpn_amp-1x_coco',
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco',
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco',
    'mmdet::detr/detr_r50_8xb2-150e_coco',
    'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
    'mmseg::bisenetv2/bisenetv2_fcn_4xb4-amp-160k_cityscapes-1024x1024',
    'mmseg::hrnet/fcn_hr18s_4xb2-40k_cityscapes-512x1024',
    'mmpretrain::resnet/resnet50_8xb32_in1k',
    'mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k',
    'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k',
    'mmpretrain::deit/deit-tiny_4xb256_in1k',
    'mmpretrain::lenet/lenet5_mnist',
]


def groups(wrapper):
    """Optimizer, settings and parameters: what PSW must leave as it is."""
    settings = [{key: [*map(id, value)] if key == 'params' else value
                 for key, value in group.items()}
                for group in wrapper.optimizer.param_groups]
    return type(wrapper.optimizer), settings


def apply(cfg, *names, **more):
    configs.apply_fragments(
        cfg, [configs.load_fragment(name) for name in names], **more)
    return cfg


@pytest.mark.parametrize('name', STOCK)
def test_every_technique_reaches_a_stock_config(name):
    stock = configs.load_config(name)
    amp = configs.is_amp(stock.optim_wrapper)
    init_default_scope(stock.default_scope)
    model = MODELS.build(copy.deepcopy(stock.model))  # some write in it
    for technique in ('pswa', 'pwalks', 'pswm'):
        cfg = apply(copy.deepcopy(stock), technique)
        kind = 'PSWAmpOptimWrapper' if amp else 'PSWOptimWrapper'
        psw = configs.load_fragment(technique).psw
        assert psw.type == technique.upper()
        expected = copy.deepcopy(stock)
        expected.merge_from_dict(
            dict(optim_wrapper=dict(type=f'mmpsw.{kind}', psw=psw),
                 custom_hooks=[dict(type='mmpsw.PSWHook'),
                               *stock.get('custom_hooks', [])]))
        assert cfg.to_dict() == expected.to_dict()
        if amp:
            continue  # the stock one needs an accelerator
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        assert type(wrapper).__name__ == 'PSWOptimWrapper'
        assert groups(wrapper) == groups(
            build_optim_wrapper(model, stock.optim_wrapper))


def test_zoo_names_and_paths(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text('a = 1\n')
    assert configs.resolve_config(path) == str(path)
    for end in ('', '.py'):
        found = configs.resolve_config(
            f'mmdet::retinanet/retinanet_r50_fpn_1x_coco{end}')
        assert found.endswith(
            '.mim/configs/retinanet/retinanet_r50_fpn_1x_coco.py')


def test_any_installed_package_with_configs_is_a_zoo(tmp_path, monkeypatch):
    """mmpose, mmyolo, mmaction and the others; and our own."""
    folder = tmp_path / 'mmelse' / '.mim' / 'configs' / 'body'
    folder.mkdir(parents=True)
    (tmp_path / 'mmelse' / '__init__.py').touch()
    (folder / 'x.py').write_text('a = 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert configs.load_config('mmelse::body/x').a == 1
    own = configs.load_config('mmpsw::study/resnet18_digits')
    assert own.train_cfg.max_epochs == 20


@pytest.mark.parametrize('name, message', [
    ('mmdet::retinanet/retinanet_r50_fpn_1x_coc',
     "did you mean 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'"),
    ('mmdet::retinanet_r50_fpn_1x_coco',
     "did you mean 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'?"),
    ('mmseg::unet/zzzzzzzzzzzzzz', 'mmseg::<folder>/<file>.py'),
    ('mmdte::retinanet/x', "did you mean 'mmdet'?"),
    ('mmpose::body/x', "pip install mmpose, or give the config's path"),
    ('mmaction::x', 'pip install mmaction2, or give'),
    ('torch::x', "with its configs; give the config's path"),
    ('a.b::x', "a.b is not installed with its configs; give the config's"),
    ('mmpsw::cls/resnet18_digit', "'mmpsw::study/resnet18_digits.py'"),
    ('configs/retinanet/retinanet_r50_fpn_1x_coco.py',
     "did you mean 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'?"),
    ('configs/study/resnet18_digits.py',
     "did you mean 'mmpsw::study/resnet18_digits.py'?"),
    ('retinanet/retinanet_r50_fpn_1x_coco.py',
     "did you mean 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'?"),
    ('lenet/lenet5_mnist', "did you mean 'mmpretrain::lenet/lenet5_mnist.py'"),
    ('nowhere/at_all.py', 'does not exist; give a path, or a zoo name'),
    ('mine.py', "did you mean 'mime.py'?"),
    ('folder', 'is no file whose name ends in .py, .json'),
    ('notes.txt', 'is no file whose name ends in .py, .json'),
    ('broken.py', 'SyntaxError'),
    ('checkpoint.pth', 'zoo name such as'),
])
def test_a_wrong_config_ends_in_one_line(name, message, tmp_path, monkeypatch):
    (tmp_path / 'mime.py').write_text('a = 1\n')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'notes.txt').write_text('')
    (tmp_path / 'broken.py').write_text('a = = 1\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as info:
        configs.load_config(name)
    assert message in str(info.value)
    assert '\n' not in str(info.value)


def test_a_framework_that_is_not_installed_says_what_to_install():
    # A fresh interpreter in which mmseg cannot be found.
    code = ('import sys; sys.modules["mmseg"] = None\n'
            'from importlib import util\n'
            'find = util.find_spec\n'
            'util.find_spec = lambda n, p=None: '
            'None if n == "mmseg" else find(n, p)\n'
            'from mmpsw import configs\n'
            'configs.resolve_config("mmseg::unet/x")')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True,
                            text=True)
    assert result.stderr.splitlines()[-1] == (
        "ValueError: 'mmseg::unet/x' cannot be found, because mmseg is not "
        "installed with its configs; pip install "
        f"{distribution('mmseg')}, or give the config's path")


# Fragments

SGD = dict(type='SGD', lr=0.1)


def config(**settings):
    return Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=SGD),
                       **settings))


def fragment(path, text):
    path.write_text(text)
    return str(path)


def test_fragments_have_the_names_of_their_files():
    known = configs.known_methods()
    assert {'pswa', 'pwalks', 'pswm', 'psw', 'ema', 'swa', 'lawa',
            'lookahead', 'switch_ema', 'baseline'} <= set(known)
    assert configs.load_fragment('PWALKS').psw == dict(type='PWALKS',
                                                       last=0.25)
    assert configs.method_name('PSWA:begin=3') == 'pswa:begin=3'
    assert configs.method_name('/there/Mine.py') == 'mine'


def test_an_installed_package_has_its_fragments_inside(tmp_path, monkeypatch):
    folder = tmp_path / 'mmpsw' / '.mim' / 'configs' / '_base_' / 'methods'
    folder.mkdir(parents=True)
    fragment(folder / 'pswa.py', "psw = dict(type='PSWA')")
    monkeypatch.setattr(configs, '__file__',
                        str(tmp_path / 'mmpsw' / 'configs.py'))
    assert configs.known_methods() == dict(pswa=folder / 'pswa.py')


@pytest.mark.parametrize('name, message', [
    ('pwalk', "did you mean 'pwalks'"),
    ('pswaa', "did you mean 'pswa'"),
    ('zzz', '--with list shows all methods'),
    ('pwalks:last', "'last' is no KEY=VALUE"),
    ('lp_sgd:tagret=0.8', "has no setting 'tagret'; give one of .* target"),
    ('baseline:lr=0.1', 'such as optim_wrapper.optimizer.lr=0.1'),
    ('broken.py', 'SyntaxError'),
])
def test_a_wrong_fragment(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fragment(tmp_path / 'broken.py', 'a = = 1')
    with pytest.raises(ValueError, match=message):
        configs.load_fragment(name)


@pytest.mark.parametrize('name, key, value', [
    ('pwalks:last=0.5', 'psw', dict(type='PWALKS', last=0.5)),
    ('pswm:momentum=0.5,last=0.25', 'psw',
     dict(type='PSWM', momentum=0.5, last=0.25)),
    ('lp_sgd:target=0.8,fraction=0.7', 'custom_hooks', [
        dict(type='mmpsw.LpSGDHook'),
        dict(type='mmpsw.SparsityHook', target=0.8, fraction=0.7)]),
    ('orthogonal:max_dim=300', 'custom_hooks', [
        dict(type='mmpsw.OrthogonalHook', map='cayley', start='identity',
             max_dim=300)]),
    ('swa:interval=2', 'custom_hooks', [  # one of mmengine's average itself
        dict(type='mmpsw.EpochAverageHook', begin=0.75, update_buffers=True,
             ema_type='StochasticWeightAverage', interval=2)]),
    ('hadamard:kind=orthogonal', 'model_transforms',
     [dict(type='mmpsw.fix_classifiers', kind='orthogonal')]),
    ('baseline:optim_wrapper.optimizer.lr=1e-3', 'optim_wrapper',
     dict(optimizer=dict(lr=0.001))),
])
def test_settings_in_a_name(name, key, value):
    assert configs.load_fragment(name).to_dict()[key] == value


def test_settings_in_a_name_reach_an_optimizer_and_hold_commas():
    fragment = configs.load_fragment('lp_sgd:p=[1.4,1.3],target=0.5')
    assert fragment.optim_wrapper.optimizer.p == [1.4, 1.3]
    assert fragment.custom_hooks[1].target == 0.5


def test_an_arm_is_split_where_a_name_follows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fragment(tmp_path / 'my+own.py', '')
    assert configs.split_arm('ema:momentum=1e+3+pswa') == [
        'ema:momentum=1e+3', 'pswa']
    assert configs.split_arm('my+own.py:a.b=1') == ['my+own.py:a.b=1']
    name = configs.method_name('PSWM:last=0.5+./my.py')
    assert name == 'pswm:last=0.5+my'
    assert configs.folder_name(name) == 'pswm_last_0.5+my'


EMA = dict(type='EMAHook', momentum=0.1)


@pytest.mark.parametrize('name, hooks, said', [
    ('psw', ['mmpsw.PSWHook', 'Stock'],
     ["The config's own EMAHook is left out, because two averages cannot both "
      'be validated: psw takes its place.']),
    ('swa', ['Stock', 'mmpsw.EpochAverageHook'],
     ["The config's own EMAHook is left out, because two averages cannot both "
      'be validated: swa takes its place.']),
    ('pswa', ['mmpsw.PSWHook', 'EMAHook', 'Stock'], []),
    ('hadamard', ['EMAHook', 'Stock'], []),
])
def test_an_average_takes_the_place_of_the_configs_own(name, hooks, said):
    cfg = config(custom_hooks=[EMA, dict(type='Stock')],
                 model=dict(type='A'))
    assert configs.apply_fragments(
        cfg, [configs.load_fragment(name)]) == said
    assert [hook.type for hook in cfg.custom_hooks] == hooks


def test_the_baseline_adds_nothing():
    cfg = config(custom_hooks=[dict(type='A')], psw=1)
    before = cfg.to_dict()
    assert apply(cfg, 'baseline').to_dict() == before


def test_several_compose_in_order(tmp_path):
    one = fragment(tmp_path / 'one.py', """
custom_hooks = [dict(type='One')]
model = dict(a=1, head=dict(b=2))
optim_wrapper = dict(optimizer=dict(type='mine.Adam'))""")
    other = fragment(tmp_path / 'other.py', """
custom_hooks = [dict(type='Two'), dict(type='Three')]
model = dict(a=1, head=dict(c=3))""")
    cfg = config(custom_hooks=[dict(type='Stock')],
                 model=dict(a=0, d=4, head=dict(b=0)))
    apply(cfg, one, 'pwalks', other)
    assert [hook.type for hook in cfg.custom_hooks
            ] == ['mmpsw.PSWHook', 'Stock', 'One', 'Two', 'Three']
    assert cfg.model == dict(a=1, d=4, head=dict(b=2, c=3))
    assert cfg.optim_wrapper == dict(
        type='mmpsw.PSWOptimWrapper', psw=dict(type='PWALKS', last=0.25),
        optimizer=dict(type='mine.Adam', lr=0.1))


@pytest.mark.parametrize('first, second, message', [
    ("psw = dict(type='PSWA')", "psw = dict(type='PSWA')", 'both set psw;'),
    ('model = dict(a=dict(b=1))', 'model = dict(a=dict(b=2))',
     'both set model.a.b;'),
    ('model = dict(a=dict(b=1))', 'model = dict(a=2)', 'both set model.a;'),
])
def test_what_does_not_compose(first, second, message, tmp_path):
    names = [fragment(tmp_path / 'one.py', first),
             fragment(tmp_path / 'other.py', second)]
    with pytest.raises(ValueError) as info:
        apply(config(), *names)
    assert str(info.value) == (
        f"'one' and 'other' cannot be used together, because {message} leave "
        'one out')


def test_a_fragment_that_does_not_fit(tmp_path):
    name = fragment(tmp_path / 'deep.py', 'model = dict(a=dict(b=1))')
    with pytest.raises(ValueError, match="'deep' does not fit the config"):
        apply(config(model=dict(a=3)), name)


@pytest.mark.parametrize('given, expected', [
    (None, 'mmpsw.PSWOptimWrapper'),
    ('OptimWrapper', 'mmpsw.PSWOptimWrapper'),
    ('mmengine.OptimWrapper', 'mmpsw.PSWOptimWrapper'),
    ('mmdet.OptimWrapper', 'mmpsw.PSWOptimWrapper'),
    (OptimWrapper, 'mmpsw.PSWOptimWrapper'),
    ('AmpOptimWrapper', 'mmpsw.PSWAmpOptimWrapper'),
    ('mmengine.optim.AmpOptimWrapper', 'mmpsw.PSWAmpOptimWrapper'),
    ('PSWOptimWrapper', 'mmpsw.PSWOptimWrapper'),
    ('mmpsw.PSWAmpOptimWrapper', 'mmpsw.PSWAmpOptimWrapper'),
])
def test_wrapper_types(given, expected):
    cfg = Config(dict(optim_wrapper=dict(type=given, optimizer=SGD)))
    apply(cfg, 'pswa')
    assert cfg.optim_wrapper.to_dict() == dict(
        type=expected, optimizer=SGD, psw=dict(type='PSWA'))


def test_an_earlier_psw_is_replaced_whole():
    before = dict(type='PWALKS', last=3)
    cfg = config(psw=before, custom_hooks=[
        dict(type='EMAHook'), dict(type='mmpsw.PSWHook')])
    cfg.optim_wrapper.update(type='mmpsw.PSWOptimWrapper', psw=before)
    apply(cfg, 'pswa')
    assert cfg.optim_wrapper.psw == cfg.psw == dict(type='PSWA')
    assert [hook.type for hook in cfg.custom_hooks
            ] == ['EMAHook', 'mmpsw.PSWHook']


def test_each_wrapper_of_several_gets_its_own_psw():
    cfg = Config(dict(optim_wrapper=dict(
        constructor='Mine', generator=dict(type='OptimWrapper', optimizer=SGD),
        critic=dict(type='AmpOptimWrapper', optimizer=SGD))))
    apply(cfg, 'pswa', options={'optim_wrapper.critic.psw.period': 2})
    outer = cfg.optim_wrapper
    assert outer.constructor == 'Mine' and 'psw' not in outer
    assert outer.generator.type == 'mmpsw.PSWOptimWrapper'
    assert outer.critic.type == 'mmpsw.PSWAmpOptimWrapper'
    assert outer.generator.psw == dict(type='PSWA')
    assert outer.critic.psw == dict(type='PSWA', period=2)


APEX = dict(type='ApexOptimWrapper', optimizer=SGD)


@pytest.mark.parametrize('optim_wrapper, message', [
    (APEX, "optim_wrapper.type='ApexOptimWrapper', because it extends only"),
    (dict(type='DeepSpeedOptimWrapper', optimizer=SGD),
     'set --cfg-options optim_wrapper.type=OptimWrapper'),
    (dict(type='other.OptimWrapper', optimizer=SGD), 'other.OptimWrapper'),
    (dict(constructor='A', one=dict(type='B', optimizer=SGD)),
     "optim_wrapper.one.type='B'"),
    (None, 'has no optim_wrapper with an optimizer'),
])
def test_a_wrapper_that_psw_does_not_extend(optim_wrapper, message):
    with pytest.raises(ValueError) as info:
        apply(Config(dict(optim_wrapper=optim_wrapper)), 'pswa')
    assert message in str(info.value)


def test_the_option_that_this_advises_helps():
    cfg = apply(Config(dict(optim_wrapper=dict(APEX))), 'pswa',
                options={'optim_wrapper.type': 'OptimWrapper'})
    assert cfg.optim_wrapper.type == 'mmpsw.PSWOptimWrapper'


# Transformations of the built model


@registry.MODELS.register_module()
def scaled_(model, by):
    """Multiplies what the config's initialisation has left."""
    stock = model.init_weights

    def init_weights():
        stock()
        for param in model.parameters():
            param.data.mul_(by)

    model.init_weights = init_weights


@pytest.mark.parametrize('name', [
    'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco',
    'mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024',
    'mmpretrain::lenet/lenet5_mnist',
])
def test_a_built_model_is_transformed(name, tmp_path):
    """One after the other; the class, the keys and the names stay stock."""
    stock = configs.load_config(name)
    names = [fragment(tmp_path / f'{by}.py', 'model_transforms = ['
                      f"dict(type='mmpsw.scaled_', by={by})]")
             for by in (2, 3)]
    cfg = apply(copy.deepcopy(stock), *names,
                options={'model.transforms.1.by': 5})
    kept = {k: v for k, v in cfg.model.items() if k in stock.model}
    assert dict(kept, type=stock.model.type) == stock.model
    again = apply(copy.deepcopy(cfg), names[0])  # a saved config's resume
    assert again.to_dict() == cfg.to_dict()
    built = []
    for one in (stock, cfg):
        torch.manual_seed(0)
        built.append(build_model(one))
        built[-1].init_weights()
    plain, model = built
    assert type(model) is type(plain)
    expected, found = plain.state_dict(), model.state_dict()
    assert list(expected) == list(found)
    for key, param in plain.named_parameters():
        assert torch.equal(found[key], param * 2 * 5), key

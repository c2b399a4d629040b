"""Fixed classifiers in mmengine's runs, and in models of the three zoos.

Started as a script by torchrun, it is one of several processes.
"""
import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from reference import Reference, assert_equal
from torch import nn
from toy import After, Points, here, trained

from mmpsw import configs
from mmpsw.engine import fix_classifiers
from mmpsw.methods.hadamard import FixedOrthogonalLinear, HadamardLinear
from mmpsw.models import build_model, losses

CLS = 'configs/study/sign_digits.py'
ROOT = Path(__file__).resolve().parents[2]


class Head(nn.Module):
    num_classes = 3

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 3)


class Classifier(BaseModel):
    """Of the points of the toy, by where their target lies."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = Head()

    def forward(self, x, y, mode='tensor'):
        logits = self.head.fc(self.net(x))
        classes = (y[:, 0] * 1.5 + 1.5).long()
        if mode == 'loss':
            return dict(loss=nn.functional.cross_entropy(logits, classes))
        return logits


def fixed(kind='hadamard'):
    model = Classifier()
    fix_classifiers(model, kind)
    return model


def train(work_dir, *args, kind='hadamard', **keys):
    return trained(work_dir, *args, model=fixed(kind), validate=False, **keys)


PWALKS = dict(type='PWALKS', last=3)
BF16 = dict(kind='mmpsw.PSWAmpOptimWrapper', wrapper=dict(dtype='bfloat16'))


# Runs


@pytest.mark.parametrize('kind', ['hadamard', 'orthogonal'])
def test_training_is_that_of_the_equation_by_hand(tmp_path, kind):
    """Six updates; W is read out once, and stays."""
    weights = After()
    train(tmp_path, hooks=[weights], kind=kind, optimizer=dict(
        type='SGD', lr=0.05), train_cfg=dict(by_epoch=True, max_epochs=1))
    model = fixed(kind)
    fc = model.head.fc
    matrix, scale, bias = fc.matrix.float(), fc.scale, fc.bias
    model.head.fc = nn.Identity()
    params = [*model.net.parameters(), scale, bias]
    data = Points()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    for step, after in enumerate(weights.after):
        batch = order[4 * step:][:4]
        features = model.net(data.x[batch])
        unit = features / (features.norm(dim=1, keepdim=True) + 1e-8)
        classes = (data.y[batch, 0] * 1.5 + 1.5).long()
        loss = nn.functional.cross_entropy(
            scale * unit @ matrix.T + bias, classes)
        for param, grad in zip(params, torch.autograd.grad(loss, params)):
            param.data -= 0.05 * grad
        for name, param in zip(
                ('net.0.weight', 'head.fc.scale', 'head.fc.bias'),
                (params[0], scale, bias)):
            torch.testing.assert_close(after[name].cpu(), param.detach())
    assert step == 5 and scale != fixed(kind).head.fc.scale


@pytest.mark.parametrize('keys', [{}, BF16], ids=['fp32', 'bf16'])
@pytest.mark.parametrize('kind', ['hadamard', 'orthogonal'])
def test_pwalks_averages_scale_and_bias_and_resumes_exactly(
        tmp_path, keys, kind, device):
    """The mean of three updates; W, where it is saved, keeps its bits."""
    if keys and device != 'cpu':
        pytest.skip('bfloat16 is for a CPU')
    matrix = here(fixed(kind)).head.fc.matrix
    runs, kept = {}, {}
    for name, psw, resume_from in (
            ('plain', dict(PWALKS, write_back=False), None),
            ('whole', PWALKS, None),
            ('resumed', PWALKS, tmp_path / 'whole' / 'iter_10.pth')):
        kept[name] = After()
        torch.manual_seed(1)
        run = runs[name] = trained(
            tmp_path / name, psw, model=fixed(kind), hooks=[kept[name]],
            validate=False, resume_from=resume_from, **keys)
        assert torch.equal(run.model.head.fc.matrix, matrix)
    reference = Reference(6, 3)
    names = 'head.fc.scale', 'head.fc.bias'
    for after in kept['plain'].after[:6]:
        mean = reference.step([after[name] for name in names])
    for name, value in zip(names, mean):
        torch.testing.assert_close(kept['whole'].after[5][name], value.float())
        assert not torch.equal(kept['plain'].after[5][name],
                               kept['whole'].after[5][name])
    assert_equal(runs['whole'].model, runs['resumed'].model)


def test_two_processes_hold_the_same_bits(tmp_path):
    from launching import environment
    subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         '--nproc-per-node', '2', __file__, str(tmp_path)], check=True,
        env=environment(), capture_output=True)
    one, other = (torch.load(tmp_path / f'rank{rank}.pt') for rank in (0, 1))
    names = [name for name in one if 'running' not in name]
    assert {'head.fc.scale', 'head.fc.bias'} < set(names)
    assert all(torch.equal(one[name], other[name]) for name in names)
    assert not torch.equal(one['head.fc.bias'], fixed().head.fc.bias)


def one_process(folder):
    from several_processes import DDP
    torch.distributed.init_process_group('gloo')
    run = train(folder / 'work', PWALKS, launcher='pytorch',
                cfg=dict(model_wrapper_cfg=DDP),
                train_cfg=dict(by_epoch=True, max_epochs=2))
    torch.save(run.model.module.state_dict(), folder / f'rank{get_rank()}.pt')
    torch.distributed.destroy_process_group()


# Models of the zoos


def load(name, kind='hadamard', **model):
    cfg = configs.load_config(ROOT / name if '::' not in name else name)
    cfg.merge_from_dict(dict(model=dict(model)))
    for part in configs.dicts(cfg.model):  # no downloads
        part.pop('pretrained', None)
        if (part.get('init_cfg') or {}).get('type') == 'Pretrained':
            part['init_cfg'] = None
    fragment = dict(hadamard='hadamard',
                    orthogonal='hadamard:kind=orthogonal')[kind]
    configs.apply_fragments(cfg, [configs.load_fragment(fragment)])
    return cfg


def images(cfg):
    """A batch of two random images, as the framework's loader has it."""
    scope = cfg.default_scope
    inputs = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)] * 2
    if scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs
        return demo_mm_inputs(2, [[3, 64, 64]] * 2, num_classes=3)
    if scope == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample
        truth = PixelData(data=torch.randint(0, 2, (1, 64, 64)))
        sample = SegDataSample(metainfo=dict(img_shape=(64, 64)),
                               gt_sem_seg=truth)
    else:
        from mmpretrain.structures import DataSample
        sample = DataSample().set_gt_label(1)
    return dict(inputs=inputs, data_samples=[sample] * 2)


@pytest.mark.parametrize('name, model, layers', [
    (CLS, {}, {'head.fc': (256, 10)}),
    ('mmpretrain::resnet/resnet50_8xb32_in1k', {}, {'head.fc': (2048, 1000)}),
    ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco', {},
     {'roi_head.bbox_head.fc_cls': (1024, 81)}),
    ('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco',
     dict(backbone=dict(depth=18), neck=dict(in_channels=[64, 128, 256, 512])),
     {f'roi_head.bbox_head.{i}.fc_cls': (1024, 81) for i in range(3)}),
    ('mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024',
     dict(data_preprocessor=dict(size=(64, 64))),
     {'decode_head.conv_seg': (512, 19), 'auxiliary_head.conv_seg': (256, 19)
      }),
    ('configs/study/dsb2018.py', {},
     {'decode_head.conv_seg': (8, 2), 'auxiliary_head.conv_seg': (8, 2)}),
], ids=lambda value: value if isinstance(value, str) else '')
@pytest.mark.parametrize('device', ['cpu'], indirect=True)
def test_a_stock_model_builds_initialises_and_steps(name, model, layers):
    """Nothing of the stock initialisation reaches scale and matrix."""
    cfg = load(name, **model)
    net = build_model(cfg).train()
    net.init_weights()
    found = {name: layer for name, layer in net.named_modules()
             if isinstance(layer, HadamardLinear)}
    assert {name: (layer.features, layer.classes)
            for name, layer in found.items()} == layers
    for layer in found.values():
        fresh = HadamardLinear(layer.features, layer.classes)
        assert layer.scale.item() == pytest.approx(layer.classes**-0.5)
        for key, value in fresh.named_buffers():
            if layer.dim == -1:
                assert torch.equal(getattr(layer, key), value)
    cfg.optim_wrapper.optimizer.lr = 1e-3
    wrapper = build_optim_wrapper(
        net, dict(type='OptimWrapper', optimizer=cfg.optim_wrapper.optimizer))
    before = copy.deepcopy(net.state_dict())
    loss, _ = net.parse_losses(losses(net, images(cfg)))
    wrapper.update_params(loss)
    assert loss.isfinite()
    after = net.state_dict()
    for key in layers:
        assert not torch.equal(before[f'{key}.scale'], after[f'{key}.scale'])
        assert f'{key}.weight' not in after


def test_the_log_says_what_is_no_longer_trained(monkeypatch):
    """ResNet-50: 2.05 of 25.6 million; and where rows are not orthogonal."""
    lines = []
    monkeypatch.setattr('mmpsw.engine.hadamard.print_log',
                        lambda text, *_: lines.append(text))
    build_model(load('mmpretrain::resnet/resnet50_8xb32_in1k'))
    assert lines == [
        'hadamard: 2,048,000 of 25,557,032 parameters (8.01%) are no longer '
        'trained, the weights of head.fc']
    model = Classifier()
    model.head.fc = nn.Linear(512, 1000)
    model.head.num_classes = 1000
    fix_classifiers(model)
    assert 'head.fc has 1000 classes and 512 features' in lines[1]
    assert 'largest absolute cosine of two classes is 0.098' in lines[1]
    model.head.fc = nn.Linear(512, 1000)
    fix_classifiers(model, columns='first', first_row=1)
    assert torch.equal(model.head.fc.columns, torch.arange(512))
    assert 'as was asked for' in lines[3] and 'classes is 1.000' in lines[3]


def test_other_layers_begin_as_in_the_stock_model():
    stock = load(CLS)
    stock.model.type = stock.model.pop('stock_type')
    stock.model.pop('transforms')
    models = []
    for cfg in (stock, load(CLS), load(CLS, 'orthogonal')):
        torch.manual_seed(0)
        models.append(build_model(cfg))
        models[-1].init_weights()
    assert isinstance(models[2].head.fc, FixedOrthogonalLinear)
    for model in models[1:]:
        assert_equal(models[0].backbone, model.backbone)
        assert type(model) is type(models[0])


NEWER = """
from mmpretrain.models import (CrossEntropyLoss, GlobalAveragePooling,
                               ImageClassifier, LinearClsHead, ResNet)

default_scope = 'mmpretrain'
model = dict(
    type=ImageClassifier,
    backbone=dict(type=ResNet, depth=18),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=1000, in_channels=512,
              loss=dict(type=CrossEntropyLoss)))
"""


def test_a_config_of_the_newer_style_is_saved_and_read_again(tmp_path):
    """Its types are classes, and what a run saves is text."""
    path = tmp_path / 'newer.py'
    path.write_text(NEWER)
    cfg = configs.load_config(path)
    configs.apply_fragments(cfg, [configs.load_fragment('hadamard')])
    cfg.dump(tmp_path / 'saved.py')
    for saved in cfg, configs.load_config(tmp_path / 'saved.py'):
        model = build_model(saved)
        assert type(model).__name__ == 'ImageClassifier'
        assert isinstance(model.head.fc, HadamardLinear)


@pytest.mark.parametrize('kind', ['Linear', 'Conv2d'])
def test_the_names_in_a_config(kind):
    """As a cls_predictor_cfg of mmdet, and as a conv_cfg of mmcv."""
    from mmcv.cnn import build_conv_layer
    from mmdet import registry
    init_default_scope('mmdet')
    name = f'mmpsw.Hadamard{kind}'
    layer = registry.MODELS.build(dict(
        type=name, in_features=8, out_features=4)) if (
            kind == 'Linear') else build_conv_layer(dict(type=name), 8, 4, 1)
    assert type(layer).__name__ == f'Hadamard{kind}'
    assert layer.classes == 4


# What is refused


def refused(change, message):
    model = Classifier()
    change(model)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=message):
        fix_classifiers(model)
    assert_equal(before, model)


@pytest.mark.parametrize('head, fixed', [
    (dict(type='VisionTransformerClsHead', in_channels=768, hidden_dim=100),
     'head.layers.head'),
    (dict(type='VisionTransformerClsHead', in_channels=100, hidden_dim=100),
     'head.layers.head'),
    (dict(type='StackedLinearClsHead', in_channels=1280,
          mid_channels=[100, 100]), 'head.layers.2.fc'),
    (dict(type='DeiTClsHead', in_channels=192, hidden_dim=100),
     'head.layers.head head.layers.head_dist'),
    (dict(type='DeiTClsHead', in_channels=100),
     'head.layers.head head.layers.head_dist'),
])
def test_a_hidden_layer_as_wide_as_the_classes_stays(head, fixed):
    """Where it is followed by the classifier, and not beside one."""
    from mmpretrain.registry import MODELS
    init_default_scope('mmpretrain')
    model = nn.Module()
    model.head = MODELS.build(dict(head, num_classes=100))
    fix_classifiers(model)
    assert fixed.split() == [
        name for name, layer in model.named_modules()
        if isinstance(layer, HadamardLinear)]


class Tempered(nn.Linear):
    pass


def test_layers_that_cannot_be_replaced_are_named():
    def layer(fc, classes=3):
        def change(model):
            model.head.num_classes, model.head.fc = classes, fc
        return change

    refused(layer(Tempered(8, 3)), "'head.fc'.* because it is a Tempered")
    refused(layer(nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))),
            "'head.fc'.* is a ParametrizedLinear")
    refused(layer(nn.Linear(8, 1), 1), "'head.fc'.* tell 1 class")
    refused(layer(nn.Linear(2, 9), 9), "'head.fc'.* by 2 features")
    refused(layer(nn.Linear(8, 3), 4), 'Classifier.* has none of the layers')

    def shared(model):
        model.other = model.head.fc

    refused(shared, "'head.fc'.* share its weight")

    def wide(model):
        model.conv_seg = nn.Conv2d(8, 4, 3)

    refused(wide, "'conv_seg'.* kernel_size=.3, 3.*1 x 1|use kernel_size=1")
    with pytest.raises(ValueError, match="kind='fourier' is not known"):
        fix_classifiers(Classifier(), 'fourier')
    with pytest.raises(ValueError, match='first_row cannot be used with'):
        fix_classifiers(Classifier(), 'orthogonal', first_row=1)
    with pytest.raises(ValueError, match="'head.fc' cannot be fixed.*0 to 5"):
        fix_classifiers(Classifier(), first_row=6)


def test_a_one_stage_detector_has_no_such_layer():
    with pytest.raises(ValueError, match='RetinaNet, because it has none.*'
                       '3 x 3 convolutions.*train it without'):
        build_model(load('configs/study/bccd.py'))


def test_knet_reads_the_weight_that_would_be_fixed():
    cfg = load('mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512')
    with pytest.raises(ValueError, match="kernel_generate_head.conv_seg'.* "
                       'K-Net.*train it without'):
        build_model(cfg)


def test_levit_fuses_the_weight_that_would_be_fixed():
    """When it is deployed, after the training."""
    with pytest.raises(ValueError, match='deployed by fusing its weight'):
        build_model(load('mmpretrain::levit/levit-128s_8xb256_in1k'))


def test_a_learned_checkpoint_begins_a_run(tmp_path):
    """With its other weights, and a word about the classifier."""
    stock = Classifier()
    stock.net[0].weight.data.fill_(0.25)
    torch.save(dict(state_dict=stock.state_dict()), tmp_path / 'stock.pth')
    weights = After()
    with pytest.warns(UserWarning, match="'head.fc' in the checkpoint is a "
                      'learned classifier'):
        train(tmp_path / 'run', hooks=[weights],
              load_from=str(tmp_path / 'stock.pth'),
              optimizer=dict(type='SGD', lr=1e-9),
              train_cfg=dict(by_epoch=True, max_epochs=1))
    torch.testing.assert_close(weights.after[0]['net.0.weight'],
                               here(stock.net[0].weight.detach()))


@pytest.mark.parametrize('held, wanted, missing', [
    (Classifier, fixed, 'head.fc.scale'),
    (fixed, Classifier, 'head.fc.weight'),
])
def test_no_run_resumes_with_the_other_kind(tmp_path, held, wanted, missing):
    from mmpsw.commands.checks import check_fit
    path = str(tmp_path / 'other.pth')
    torch.save(dict(state_dict=held().state_dict()), path)
    with pytest.raises(ValueError, match=f"another model.*lacks '{missing}'.*"
                       'the config that it was trained with'):
        check_fit(Config(dict(load_from=path, resume=True)), wanted())


if __name__ == '__main__':
    one_process(Path(sys.argv[1]))

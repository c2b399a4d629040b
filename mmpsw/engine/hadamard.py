"""Fixed classifiers in the models of mmdet, mmseg and mmpretrain.

By a transformation of the built model, or by name: HadamardLinear as a
``cls_predictor_cfg``, HadamardConv2d as a ``conv_cfg``.
"""
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from mmpsw.methods.hadamard import (
    FixedOrthogonalConv2d,
    FixedOrthogonalLinear,
    HadamardConv2d,
    HadamardLinear,
)
from mmpsw.registry import MODELS

__all__ = ['fix_classifiers']

_KINDS = {
    'hadamard': (HadamardLinear, HadamardConv2d),
    'orthogonal': (FixedOrthogonalLinear, FixedOrthogonalConv2d),
}
# The classes whose forward a fixed layer can stand for; others, derived from
# them, normalise or quantise.
_PLAIN = ('torch.nn.modules.linear.Linear', 'torch.nn.modules.conv.Conv2d',
          'mmcv.cnn.bricks.wrappers.Linear',
          'mmcv.cnn.bricks.wrappers.Conv2d')


@MODELS.register_module()
def fix_classifiers(model: nn.Module, kind: str = 'hadamard', seed: int = 0,
                    columns: str | None = None,
                    first_row: int | None = None) -> None:
    """Replaces a model's classification layers by fixed ones, in place.

    These are the linear layers of a classifier's ``head`` that end in its
    ``num_classes``, and what is called ``fc_cls`` (two-stage detectors, each
    stage of a cascade, DETR) or ``conv_seg`` (segmentors, their auxiliary
    heads too).

    Args:
        model (nn.Module): Built, its optimizer not yet.
        kind (str): 'hadamard' or 'orthogonal'. Defaults to 'hadamard'.
        seed (int): Draws columns, or the orthogonal matrix.
        columns, first_row (str, int): As of
            :class:`~mmpsw.methods.hadamard.HadamardLinear`, whose own are the
            defaults.

    Raises:
        ValueError: There is no such layer, or it is of a kind that cannot be
            replaced: it is named.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind='{kind}' is not known: use 'hadamard' or "
                         "'orthogonal'.")
    rows = {key: value for key, value in (
        ('columns', columns), ('first_row', first_row)) if value is not None}
    if rows and kind != 'hadamard':
        raise ValueError(f"{', '.join(rows)} cannot be used with kind="
                         f"'{kind}', because only Hadamard's matrix has rows "
                         'to choose from: leave it out.')
    layers = _classification_layers(model)
    if not layers:
        raise ValueError(
            f'a fixed classifier cannot be used in {type(model).__name__}, '
            "because it has none of the layers that it could replace: a "
            "classifier's linear head, fc_cls of a two-stage detector, "
            'conv_seg of a segmentor (one-stage detectors classify by 3 x 3 '
            'convolutions and a sigmoid): train it without.')
    count = sum(param.numel() for param in model.parameters())
    fixed = sum(layer.weight.numel() for layer in _checked(model, layers))
    # What is initialised later begins as it would with the stock layers.
    with torch.random.fork_rng(devices=[]):
        for name, layer in layers.items():
            model.set_submodule(
                name, _replacement(name, layer, kind, seed=seed, **rows))
    print_log(f'hadamard: {fixed:,} of {count:,} parameters '
              f'({fixed / count:.2%}) are no longer trained, the weights of '
              f'{", ".join(layers)}', 'current')


def _classification_layers(model: nn.Module) -> dict[str, nn.Module]:
    layers = {name: layer for name, layer in model.named_modules()
              if name.rpartition('.')[2] in ('fc_cls', 'conv_seg')}
    head = getattr(model, 'head', None)
    if hasattr(head, 'num_classes'):
        layers.update(_linear_classifiers(head))
    return layers


def _linear_classifiers(head: nn.Module) -> dict[str, nn.Module]:
    """Those that end in the classes, without hidden layers of that width.

    A hidden layer is one that another follows, after an activation or so:
    classifiers side by side, as those of distillation, have none between.
    """
    found: dict[str, nn.Module] = {}
    between = False
    for name, layer in head.named_modules(prefix='head'):
        if (isinstance(layer, nn.Linear)
                and layer.out_features == head.num_classes):
            if between and layer.in_features == head.num_classes:
                found.clear()
            found[name], between = layer, False
        elif not list(layer.children()):
            between = bool(found)
    return found


def _checked(model: nn.Module, layers: dict) -> list[nn.Module]:
    """The layers; a ValueError where one cannot be replaced."""
    weights = [id(param) for _, param in model.named_parameters(
        remove_duplicate=False)]
    for name, layer in layers.items():
        if 'kernel_generate_head' in name:
            raise ValueError(
                f"'{name}' cannot be a fixed classifier, because K-Net takes "
                'its weight for its first kernels: train it without.')
        parent = model.get_submodule(name.rpartition('.')[0])
        if hasattr(parent, 'fuse'):
            raise ValueError(
                f"'{name}' cannot be a fixed classifier, because the model is "
                f'deployed by fusing its weight into others, in '
                f'{type(parent).__name__}: train it without.')
        kind = type(layer)
        if f'{kind.__module__}.{kind.__qualname__}' not in _PLAIN:
            raise ValueError(
                f"'{name}' cannot be a fixed classifier, because it is a "
                f'{kind.__name__}, and only plain Linear and 1 x 1 Conv2d '
                'layers are known: train it without.')
        if weights.count(id(layer.weight)) > 1:
            raise ValueError(
                f"'{name}' cannot be a fixed classifier, because other parts "
                'of the model share its weight: train it without.')
    return list(layers.values())


def _replacement(name: str, layer: nn.Module, kind: str,
                 **settings: Any) -> nn.Module:
    linear, conv = _KINDS[kind]
    settings['bias'] = layer.bias is not None
    try:
        if isinstance(layer, nn.Linear):
            fixed = linear(layer.in_features, layer.out_features, **settings)
        else:
            fixed = conv(
                layer.in_channels, layer.out_channels, layer.kernel_size,
                layer.stride, layer.padding, layer.dilation, layer.groups,
                **settings)
    except ValueError as error:
        raise ValueError(f"'{name}' cannot be fixed: {error}") from None
    _log_rows(name, fixed)
    return fixed


def _log_rows(name: str, layer: nn.Module) -> None:
    """Says so where the classes' rows are not orthogonal."""
    coherence = getattr(layer, 'coherence', 0)
    if coherence:
        how = ('the first columns are taken, as was asked for'
               if layer.official else
               'of some draws of its columns the best was taken')
        print_log(
            f'hadamard: {name} has {layer.classes} classes and '
            f'{layer.features} features, so that rows of the first columns '
            f"of Hadamard's matrix repeat or are not orthogonal: {how}, and "
            'the largest absolute cosine of two classes is '
            f'{coherence:.3f}', 'current')


def _register(kind: type) -> None:
    def build(*args: Any, **keys: Any) -> nn.Module:
        layer = kind(*args, **keys)
        _log_rows(kind.__name__, layer)
        return layer

    MODELS.register_module(name=kind.__name__, module=build)


for _kind in sum(_KINDS.values(), ()):
    _register(_kind)

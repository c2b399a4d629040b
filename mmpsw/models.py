"""Models: built from a config, whoever wraps them, and their loss."""
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import (
    BaseTTAModel,
    is_model_wrapper,
    revert_sync_batchnorm,
)
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import get_state_dict
from torch import Tensor, nn

from mmpsw import registry

__all__ = [
    'build_model', 'build_transformed', 'init_scope', 'losses',
    'saved_tensors', 'unwrapped'
]


@registry.MODELS.register_module(name='TransformedModel')
def build_transformed(stock_type: str | type, transforms: Sequence[dict],
                      **settings: Any) -> nn.Module:
    """A stock model that was changed after it was built.

    Before the optimizer is made, and before DDP wraps the model. Its class
    stays the stock one, and a config's ``model`` keeps all its stock keys.

    Args:
        stock_type (str or type): What ``model.type`` was.
        transforms (Sequence[dict]): Registered callables and their arguments;
            each gets ``model`` too, and changes it in place. mmengine
            initialises the weights later, by the model's ``init_weights``.
        **settings: The stock model's own.

    Returns:
        nn.Module: The model.
    """
    model = MODELS.build(dict(settings, type=stock_type))
    for transform in transforms:
        MODELS.build(transform, default_args=dict(model=model))
    return model


def init_scope(cfg: Config) -> None:
    """Make a config's default scope the current one, as a Runner does.

    The newer style has None: each registry looks into itself first, which it
    would not in mmengine's scope.
    """
    scope = cfg.get('default_scope', 'mmengine')
    if scope is not None:
        init_default_scope(scope)


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model as mmengine's Runner does, on the best device.

    Synchronised batch norm, which needs several processes, becomes a plain
    one. The weights are those that the constructors leave.
    """
    init_scope(cfg)
    settings = dict(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    return revert_sync_batchnorm(MODELS.build(settings)).to(get_device())


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of DDP, and of test time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers themselves, by their names in a checkpoint.

    Which know nothing of wrappers, also of those around parts of a model.
    """
    return get_state_dict(model, keep_vars=True)


def losses(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """A forward pass in loss mode, as ``BaseModel.train_step`` does it.

    Args:
        model (nn.Module): A mmengine BaseModel, or what wraps one.
        batch (dict, list or tuple): What a data loader yields.

    Returns:
        Dict[str, Tensor]: What the model calls its losses.
    """
    model = unwrapped(model)
    return model._run_forward(
        model.data_preprocessor(batch, training=True), mode='loss')

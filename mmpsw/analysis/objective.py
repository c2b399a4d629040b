"""A config's training loss and validation metrics, for weights in a model."""
import contextlib
import copy
import io
import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from numbers import Number
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch import nn

from mmpsw.methods.averaging import recalibrate

__all__ = ['TrainingLoss', 'Validation', 'build_model', 'fixed_batches']


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model, untrained, on the GPU if there is one.

    No weights are downloaded. SyncBN becomes BN, as there is one process.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = ConfigDict(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return revert_sync_batchnorm(MODELS.build(model)).to(get_device()).train()


def fixed_batches(cfg: Config, model: nn.Module, count: int,
                  seed: int) -> list[Any]:
    """The first training batches of an epoch, ready for the model.

    Order and augmentation are those of the config, drawn once from the seed:
    whoever uses the batches again sees the same images.

    Args:
        cfg (Config): Its ``train_dataloader`` is read, in this process.
        model (nn.Module): Its data preprocessor is applied.
        count (int): How many; fewer when an epoch holds fewer.
        seed (int): The seed.

    Returns:
        List[Any]: The batches, on the model's device.
    """
    loader_cfg = copy.deepcopy(cfg.train_dataloader)
    loader_cfg.update(num_workers=0, persistent_workers=False)
    loader_cfg.pop('prefetch_factor', None)
    set_random_seed(seed)
    loader = Runner.build_dataloader(loader_cfg, seed=seed)
    set_random_seed(seed)
    return [
        model.data_preprocessor(batch, training=True)
        for batch in islice(loader, count)
    ]


class TrainingLoss:
    """The mean training loss over batches that never change.

    The model computes its loss as in training, but batch norm normalises
    with its running statistics, dropout is off, and what is random in the
    loss itself (the choice of boxes, say) is drawn from the same seeds at
    each call: equal weights give equal losses.

    Batch norm decides what one sees. Its running statistics belong to the
    activations of the weights that were saved; other weights have other
    activations, so that a part of a rise is this mismatch, and a perturbed
    network looks worse than its weights are. With ``recalibrated`` the
    statistics are recomputed for each point, by a pass over the same batches
    (twice the time): the loss is that of the weights alone, and minima look
    wider.

    Args:
        model (nn.Module): An mmengine model.
        batches (Sequence): What its data preprocessor returns.
        recalibrated (bool): Recompute batch-norm statistics for each loss.
        seed (int): For what is random in the loss.
    """

    def __init__(self,
                 model: nn.Module,
                 batches: Sequence[Any],
                 recalibrated: bool = False,
                 seed: int = 0):
        self.model = model
        self.batches = batches
        self.recalibrated = recalibrated
        self.seed = seed

    @torch.no_grad()
    def __call__(self) -> float:
        """The loss of the weights that are in the model now."""
        if self.recalibrated:
            self.model.train()
            set_random_seed(self.seed)
            recalibrate(self.model, self._losses, self.batches)
        with _deterministic(self.model):
            total = 0.0
            for index, batch in enumerate(self.batches):
                set_random_seed(self.seed + index)
                loss, _ = self.model.parse_losses(self._losses(batch))
                total += loss.item()
        return total / len(self.batches)

    def _losses(self, batch: Any) -> dict:
        batch = copy.deepcopy(batch)  # some models write into their samples
        if isinstance(batch, dict):
            return self.model(**batch, mode='loss')
        return self.model(*batch, mode='loss')


@contextlib.contextmanager
def _deterministic(model: nn.Module) -> Iterator[None]:
    """A model in training mode, its layers in evaluation mode.

    Layers are the innermost modules: batch norm, dropout, stochastic depth.
    The models themselves stay in training mode, because many of them compute
    what their loss needs only there.
    """
    model.train()
    for module in model.modules():
        if (isinstance(module, nn.MultiheadAttention)
                or not any(module.children())):
            module.eval()
    try:
        yield
    finally:
        model.train()


class Validation:
    """A config's validation: its data, its evaluator, its metrics.

    Args:
        cfg (Config): With ``val_dataloader`` and ``val_evaluator``.
        model (nn.Module): An mmengine model.
    """

    def __init__(self, cfg: Config, model: nn.Module):
        self.model = model
        self.loader = Runner.build_dataloader(cfg.val_dataloader, seed=0)
        self.evaluator = Evaluator(cfg.val_evaluator)
        self.evaluator.dataset_meta = getattr(self.loader.dataset, 'metainfo',
                                              None)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """The metrics of the weights that are in the model now."""
        self.model.eval()
        with _quiet():
            for batch in self.loader:
                outputs = self.model.val_step(batch)
                self.evaluator.process(data_samples=outputs, data_batch=batch)
            metrics = self.evaluator.evaluate(len(self.loader.dataset))
        self.model.train()
        return {
            name: float(value)
            for name, value in metrics.items()
            if isinstance(value, (Number, torch.Tensor))
        }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tables that evaluators print, one for each point."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)

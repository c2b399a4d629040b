"""LpSGD in a config: which weights lie on the sphere, and with which p."""
from itertools import chain, repeat
from typing import Any

import numpy
import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.optim.optimizer import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from mmpsw.methods.lp_sgd import LpSGD
from mmpsw.methods.sparsity import hoyer
from mmpsw.models import unwrapped
from mmpsw.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS

__all__ = ['LpSGDConstructor', 'LpSGDHook']

OPTIMIZERS.register_module(module=LpSGD)

# WilliamLiPro/LpSS, demo.py: epochs 0, E/6, E/3, E - 3 and E of E = 50.
_SCHEDULE = (0, 1 / 6, 1 / 3, 0.94, 1), (0.02, 1, 0.25, 0.002, 1e-4)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LpSGDConstructor(DefaultOptimWrapperConstructor):
    """Gives each parameter its p, and puts equal ones into one group.

    On the sphere lie the weights of convolutions and linear layers that have
    no bias, more than one input channel, and a batch or instance norm behind
    them (:func:`norms_behind`), so that a filter's norm does not matter. All
    else trains by plain SGD: norms, biases, last layers, depthwise and
    transposed convolutions; the log says which others are left.
    ``custom_keys`` change it by name: ``{'layer1': dict(p=1.3), 'fpn':
    dict(p=1.07), 'downsample': dict(p=None)}``, but for norms and biases.

    .. code-block:: python

        optim_wrapper = dict(
            constructor='mmpsw.LpSGDConstructor',
            optimizer=dict(type='mmpsw.LpSGD', lr=0.1, sphere_lr=0.0078,
                           p=[1.2, 1.2, 1.2, 1.2, 1.07], momentum=0.9))

    The optimizer's keys are those of LpSGD, except for these; all else, as
    ``paramwise_cfg``, is mmengine's.

    - lr: The rate of what trains plainly, >= 0.
    - sphere_lr: The rate on the sphere, in (0, 1). Schedules and ``lr_mult``
      scale both rates alike.
    - p: A number, or a list: one for each layer in the model's order, and the
      last for all further ones.

    Raises:
        ValueError: A key is missing, or no weight lies on the sphere.
    """

    def __init__(self, optim_wrapper_cfg: dict,
                 paramwise_cfg: dict | None = None):
        # Without any setting mmengine would not ask about single parameters.
        super().__init__(optim_wrapper_cfg,
                         paramwise_cfg or dict(bypass_duplicate=True))
        self.optimizer_cfg = dict(self.optimizer_cfg)
        try:
            self.lr = self.optimizer_cfg['lr']
            self.sphere_lr = self.optimizer_cfg.pop('sphere_lr')
            p = self.optimizer_cfg.pop('p')
        except KeyError as error:
            raise ValueError(
                'LpSGDConstructor needs lr, sphere_lr and p, because the '
                f'sphere has a rate of its own: set optimizer.{error.args[0]}.'
            ) from error
        self.p = p if isinstance(p, (list, tuple)) else [p]
        if not self.p:
            raise ValueError('p=[] is not possible, because it has no number '
                             'for the last layer: use at least one.')
        self.base_lr = 1.  # so that a group's lr is its lr_mult

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer wrapper."""
        layers = {name: module for name, module in model.named_modules()
                  if _could_lie_on_sphere(module)}
        # A parametrised weight is computed anew from others.
        behind = [layer for layer in norms_behind(model)
                  if 'weight' in layer._parameters]
        left = [name for name, layer in layers.items() if layer not in behind]
        if left:
            print_log('lp_sgd: without a batch or instance norm behind them, '
                      'or parametrised, and so left to plain SGD: '
                      + ', '.join(left), logger='current')
        self.p_of = {id(layer.weight): p for layer, p in zip(
            (layer for layer in layers.values() if layer in behind),
            chain(self.p, repeat(self.p[-1])))}
        return super().__call__(model)

    def add_params(self, params: list[dict], module: nn.Module,
                   prefix: str = '', **kwargs: Any) -> None:
        """mmengine's groups, one a parameter, each with its p and rate."""
        super().add_params(params, module, prefix, **kwargs)
        if prefix:  # called by itself, for a part of the model
            return
        for group in params:
            group.setdefault('p', self.p_of.get(id(group['params'][0])))
            if group['params'][0].dim() < 2:  # in a part that a key names
                group['p'] = None
            group['lr'] = group.get('lr', 1.) * (
                self.lr if group['p'] is None else self.sphere_lr)
        params[:] = _merged(params)
        if all(group['p'] is None for group in params):
            raise ValueError(
                'LpSGD has nothing to do, because no trainable convolution '
                'or linear layer of this model is without a bias and has a '
                'batch or instance norm behind it: name the layers, with '
                'paramwise_cfg=dict(custom_keys={"backbone": dict(p=1.07)}), '
                'or train without LpSGD.')


def _could_lie_on_sphere(module: nn.Module) -> bool:
    return (isinstance(module, (_ConvNd, nn.Linear))
            and not isinstance(module, _ConvTransposeNd)
            and module.bias is None and module.weight.shape[1] > 1)


def norms_behind(model: nn.Module) -> dict[nn.Module, list[nn.Module]]:
    """The batch and instance norms behind convolutions and linear layers.

    That is: the next one among a module's children, of as many channels, with
    no other layer or norm between them. A layer that several modules share
    has several.
    """
    found: dict[nn.Module, list[nn.Module]] = {}
    for module in model.modules():
        last = None
        order = getattr(module, 'order', ())  # of mmcv's ConvModule
        if {'norm', 'conv'} <= set(order) and (
                order.index('norm') < order.index('conv')):
            continue
        for child in module.children():
            if isinstance(child, (_BatchNorm, _InstanceNorm)):
                if last is not None and child.num_features == len(
                        last.weight):
                    found.setdefault(last, []).append(child)
                last = None
            elif isinstance(child, (_ConvNd, nn.Linear)):
                last = child
    return found


def _merged(groups: list[dict]) -> list[dict]:
    """Groups of equal settings as one: fewer and larger kernels."""
    merged: dict[str, dict] = {}
    for group in groups:
        settings = {key: group[key] for key in group if key != 'params'}
        same = merged.setdefault(
            repr(sorted(settings.items())), dict(settings, params=[]))
        same['params'] += group['params']
    return list(merged.values())


@HOOKS.register_module()
class LpSGDHook(Hook):
    """Puts the weights on the sphere before the first step, and says so.

    The running statistics of a batch norm behind a layer are scaled with its
    filters: a pretrained model computes what it did, also where its norms are
    in eval mode, as in mmdet's backbones.

    Hoyer's sparsity of the weights on the sphere, which p controls, is logged
    before each validation, as ``lp_sgd/hoyer``.

    Args:
        schedule (bool): The authors' schedule of the rates, instead of the
            config's: over the run's shares 0, 1/6, 1/3, 0.94 and 1, linear
            between 0.02, 1, 0.25, 0.002 and 0.0001 times the rates. Defaults
            to False.

    Raises:
        ValueError: The optimizer is another, or a filter is all zero.
    """

    # Before averages take the first weights.
    priority = 'HIGH'

    def __init__(self, schedule: bool = False):
        self.schedule = schedule

    def before_train_iter(self, runner: Runner, *args: Any,
                          **kwargs: Any) -> None:
        """Set the rates, where the schedule is the authors'."""
        if self.schedule:
            factor = numpy.interp(runner.iter / runner.max_iters, *_SCHEDULE)
            for group in runner.optim_wrapper.optimizer.param_groups:
                group['lr'] = group.setdefault(
                    'initial_lr', group['lr']) * float(factor)

    def before_val_epoch(self, runner: Runner) -> None:
        """Log Hoyer's sparsity."""
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        found = [hoyer(w) for group in getattr(optimizer, 'param_groups', ())
                 if group.get('p') is not None for w in group['params']]
        if found:
            mean = sum(found) / len(found)
            runner.message_hub.update_scalar('train/lp_sgd/hoyer', mean)
            # The scalar is written with the next epoch's, if there is one.
            print_log(f"lp_sgd: Hoyer's sparsity is {mean:.3f}",
                      logger='current')

    def before_train(self, runner: Runner) -> None:
        """Look at the weights after they were loaded."""
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        if not isinstance(optimizer, LpSGD):
            raise ValueError(
                'LpSGDHook needs LpSGD, but the optimizer is a '
                f'{type(optimizer).__name__}: use both, as '
                'configs/_base_/methods/lp_sgd.py does, or neither.')
        if self.schedule and runner.param_schedulers:
            raise ValueError(
                'schedule=True cannot be used with a param_scheduler, because '
                'both set the rates: set param_scheduler=[].')
        if runner.iter:  # a resumed run goes on with what was saved
            return
        model = unwrapped(runner.model)
        names = {w: name for name, w in model.named_parameters()}
        factors = optimizer.project(names)
        if not factors:
            return
        behind = norms_behind(model)
        undone = set()
        for layer, norms in behind.items():
            if layer.weight in factors:
                undone.add(layer.weight)
                for norm in norms:
                    _rescale(norm, factors[layer.weight])
        bare = [names[w] for w in factors if w not in undone]
        count = sum(w.numel() for w in factors)
        total = sum(w.numel() for w in names)
        print_log(
            f'lp_sgd: {len(factors)} weights ({count} of {total} numbers) are '
            'put on the sphere: each filter is divided by its norm, and the '
            'statistics of the norm behind it too. They are: '
            + ', '.join(names[w] for w in factors)
            + ('. Without a norm behind them, these compute something else '
               f'now: {", ".join(bare)}' if bare else ''), logger='current')


@torch.no_grad()
def _rescale(norm: nn.Module, factor: Tensor) -> None:
    """Let running statistics follow inputs that are multiplied."""
    if norm.running_mean is not None:
        norm.running_mean.mul_(factor)
        # With eps, which would count for more beside a small variance.
        norm.running_var.add_(norm.eps).mul_(factor**2).sub_(norm.eps)

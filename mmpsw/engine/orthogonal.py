"""OPT's seam to mmengine: which layers, the checkpoint, and the log."""
from collections.abc import Iterator

import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, print_log
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from mmpsw.methods.orthogonal import (
    OrthogonalConv2d,
    OrthogonalTraining,
    minimise_energy,
)
from mmpsw.models import unwrapped
from mmpsw.registry import HOOKS, MODELS

from .averaging.follower import optim_wrappers

__all__ = ['OrthogonalHook']

MODELS.register_module(module=OrthogonalConv2d)


@HOOKS.register_module()
class OrthogonalHook(Hook):
    """Trains orthogonal maps of the convolutions' weights: OPT.

    See :class:`mmpsw.methods.orthogonal.OrthogonalTraining`. All else stays
    stock: the model, its weights' names, and what DDP, an EMAHook, PSW and a
    checkpoint's ``state_dict`` see, which is the merged weights. R, W0 and
    the drawn rows are saved beside them, under ``orthogonal``.

    Turned are the model's :class:`OrthogonalConv2d` (``conv_cfg=dict(
    type='mmpsw.OrthogonalConv2d')``), or where it has none, all its Conv2d
    outside of heads, which train as usual like the paper's classifier. The
    log says which are turned whole, which in part, and which are left.

    Args:
        map (str): 'cayley', 'gram_schmidt', 'householder', 'loewdin',
            'regulariser' or 'gradient_descent'. Defaults to 'cayley'.
        max_dim (int): The largest R, in rows: it takes the memory of
            ``max_dim**2`` numbers several times, and time with the cube.
            A layer with more rows, d = kh kw c_in, is stochastic, and where
            ``share * d`` is still more, left. Defaults to 1152, which is
            3 * 3 * 128.
        share (float): Which share of its rows a stochastic layer draws. 0
            leaves such layers as they are. Defaults to 0.25.
        stochastic (bool): Whether all layers but the first are stochastic,
            as in the paper's S-OPT. Defaults to False.
        period (int): The updates after which other rows are drawn. Defaults
            to 750, the paper's.
        start (str): 'random' or 'identity': where R starts. Defaults to
            'random', the paper's.
        seed (int): Of the generator that draws R and the rows. Defaults to 0.
        refine (int): The paper's refined start: so many steps of gradient
            descent on the hyperspherical energy of each layer's neurons,
            which get the norm 1, before the training. Only of weights that
            are drawn. Defaults to 0.

    Raises:
        ValueError: The model has no layer that can be turned, or a setting
            is not possible.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self, map: str = 'cayley', max_dim: int = 1152,
                 share: float = 0.25, stochastic: bool = False,
                 period: int = 750, start: str = 'random', seed: int = 0,
                 refine: int = 0):
        self.settings = dict(map=map, share=share, period=period, start=start,
                             seed=seed)
        self.max_dim = max_dim
        self.stochastic = stochastic
        self.trainings: dict[str, OrthogonalTraining] = {}
        self.zero: list[str] = []
        self.refine = refine

    def before_run(self, runner: Runner) -> None:
        """Look at the layers, when the run is a training."""
        if not isinstance(getattr(runner, '_train_loop', None), BaseLoop):
            return
        if sum(isinstance(hook, OrthogonalHook) for hook in runner.hooks) > 1:
            raise ValueError(
                'Two OrthogonalHooks cannot turn the same weights: leave one '
                'out of --with, or of custom_hooks.')
        self._choose(unwrapped(runner.model))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Go on with the maps of a run that is resumed.

        Before its optimizer's state is loaded, which is theirs too.

        Raises:
            ValueError: It was begun without them, with other settings, or
                before 0.2.
        """
        if not getattr(runner, '_resume', False):
            return
        saved = checkpoint.get('orthogonal')
        if saved is None:
            raise ValueError(
                'The checkpoint cannot be resumed from with OrthogonalHook, '
                'because it has no orthogonal maps: resume with the settings '
                'with which the run was begun, or start a new one from its '
                'weights with load_from.')
        if 'maps' not in saved:
            raise ValueError(
                'The checkpoint cannot be resumed from with OrthogonalHook, '
                'because mmpsw before 0.2 saved it, which kept the maps in '
                'another form: start a new run from its weights with '
                'load_from.')
        self.zero = saved['zero']
        self._begin(runner)
        for name, training in self.trainings.items():
            training.load_state_dict(saved['maps'][name])

    def before_train(self, runner: Runner) -> None:
        """Start from the weights that were initialised or loaded.

        Raises:
            ValueError: There is nothing to turn, or it cannot be turned so.
        """
        if self.trainings:
            return
        if runner.iter:
            raise ValueError(
                'OrthogonalHook cannot continue a Runner.resume() by hand, '
                'because its matrices have to be there before: use '
                'resume=True with load_from.')
        model = unwrapped(runner.model)
        self._check_start(runner, model)
        self.zero = [name for name, conv in _convolutions(model)
                     if not conv.weight.any()]
        if self.refine:
            whole, drawn, _ = self._choose(model)
            for weight in (whole | drawn).values():
                minimise_energy(weight, self.refine)
        self._begin(runner)

    def _begin(self, runner: Runner) -> None:
        model = unwrapped(runner.model)
        whole, drawn, left = self._choose(model)
        turned: set[str] = set()
        for name, wrapper in optim_wrappers(runner).items():
            optimizer = wrapper.optimizer
            if hasattr(optimizer, 'consolidate_state_dict'):
                raise ValueError(
                    'OrthogonalHook cannot be used with a '
                    'ZeroRedundancyOptimizer, because the optimizer inside '
                    'of it would not train the matrices: use that one '
                    'itself.')
            trained = {id(param) for group in optimizer.param_groups
                       for param in group['params']}
            weights = {key: weight for key, weight in (whole | drawn).items()
                       if id(weight) in trained}
            turned |= weights.keys()
            if weights:
                self.trainings[name] = OrthogonalTraining(
                    optimizer, weights, stochastic=drawn, **self.settings)
        for chosen in (whole, drawn):
            for key in [key for key in chosen if key not in turned]:
                del chosen[key]
                left[key] = 'in no optimizer'
        if not self.trainings:
            raise ValueError(
                'OrthogonalHook has nothing to turn, because '
                f'{type(model).__name__} has no convolution outside of its '
                f'heads for it{_listed("; left", left)}: train without it, or '
                'set max_dim if they are too large.')
        print_log(
            f"orthogonal: {self.settings['map']} on "
            f'{len(whole) + len(drawn)} convolutions'
            f'{_listed("; whole", whole)}{_listed("; in part", drawn)}'
            f'{_listed("; left as they are", left)}', logger='current')

    def before_val_epoch(self, runner: Runner) -> None:
        """Say how orthogonal the maps are."""
        errors = {name: error for training in self.trainings.values()
                  for name, error in training.errors().items()}
        if errors:
            worst = max(errors, key=errors.get)
            MessageHub.get_current_instance().update_scalar(
                'train/orthogonal/error', errors[worst])
            print_log(f'orthogonal: the largest entry of |Q^T Q - I| is '
                      f'{errors[worst]:.2g}, in {worst}', logger='current')

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict) -> None:
        """Save what a resume needs, where the optimizer's state is saved."""
        for training in self.trainings.values():
            training.check()
        if self.trainings and 'optimizer' in checkpoint:
            checkpoint['orthogonal'] = dict(zero=self.zero, maps={
                name: training.state_dict()
                for name, training in self.trainings.items()})

    def _choose(self, model: nn.Module) -> tuple[dict, dict, dict]:
        """The weights to turn whole and in part, and why others are left."""
        whole, drawn, left = {}, {}, {}
        for name, conv in _convolutions(model):
            reason = _why_not(model, conv) or (
                'zero at the start' if name in self.zero else '')
            d = 0 if reason else conv.weight[0].numel()
            part = self.stochastic and bool(whole | drawn)
            if reason or d == 1:
                left[name] = reason or 'one row'
            elif d <= self.max_dim and not part:
                whole[name] = conv.weight
            elif 0 < self.settings['share'] * d <= self.max_dim:
                drawn[name] = conv.weight
            else:
                left[name] = f'{d} rows'
            if isinstance(conv, OrthogonalConv2d):
                conv.rotated = True
        return whole, drawn, left

    def _check_start(self, runner: Runner, model: nn.Module) -> None:
        given = runner._load_from and not runner._resume or any(
            'Pretrained' in str(getattr(module, 'init_cfg', ''))
            for module in model.modules())
        if given and self.refine:
            raise ValueError(
                f'refine={self.refine} is not possible with weights that are '
                'given (load_from, or a pretrained part), because it replaces '
                'them: leave it out.')
        if given and (self.settings['map'], self.settings['start']) == (
                'regulariser', 'random'):
            raise ValueError(
                "map='regulariser' cannot start at random from weights that "
                'are given (load_from, or a pretrained part), because '
                'without a constraint R W0 would be others: use '
                "start='identity', or another map.")


def _convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All layers with a convolution's weight, or those that are marked."""
    found = [(name, module) for name, module in model.named_modules()
             if 'Conv' in type(module).__name__
             and isinstance(getattr(module, 'weight', None), torch.Tensor)]
    marked = [(name, module) for name, module in found
              if isinstance(module, OrthogonalConv2d)]
    yield from marked or [(name, module) for name, module in found
                          if 'head' not in name]


def _why_not(model: nn.Module, conv: nn.Module) -> str:
    """Why a layer's weight cannot be turned; empty where it can."""
    owners = sum(getattr(module, 'weight', None) is conv.weight
                 for module in model.modules())
    reasons = {
        type(conv).__name__: not isinstance(conv, nn.Conv2d),
        'parametrized': is_parametrized(conv),
        'quantised': hasattr(conv, 'weight_fake_quant'),
        'grouped': getattr(conv, 'groups', 1) > 1,
        'shared weight': owners > 1,
        'frozen': not conv.weight.requires_grad,
        str(conv.weight.dtype): conv.weight.dtype not in (
            torch.float32, torch.float64),
    }
    return next((reason for reason, holds in reasons.items() if holds), '')


def _listed(title: str, layers: dict) -> str:
    names = [f'{name} ({why})' if isinstance(why, str) else name
             for name, why in layers.items()]
    return f'{title}: {", ".join(names)}' if names else ''

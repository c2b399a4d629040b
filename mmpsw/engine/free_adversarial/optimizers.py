"""The two players' optimizers, and what is saved with them."""
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from torch import nn

from mmpsw.models import unwrapped
from mmpsw.registry import OPTIM_WRAPPER_CONSTRUCTORS

__all__ = ['GANOptimWrapperConstructor', 'GANOptimWrapperDict']

PLAYERS = ('discriminator', 'generator')
_KEY = 'free_adversarial'


class GANOptimWrapperDict(OptimWrapperDict):
    """An optimizer for each player; saves the model's training state too.

    So that delta, the generators and the counts lie beside the weights, and
    not among them.
    """

    def __init__(self, model: nn.Module, **wrappers: OptimWrapper):
        super().__init__(**wrappers)
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        """Those of the players, and the state under 'free_adversarial'."""
        return {**super().state_dict(), _KEY: self.model.training_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the players' states, and what the model goes on with."""
        state_dict = dict(state_dict)
        state = state_dict.pop(_KEY, None)
        super().load_state_dict(state_dict)
        if state is None:
            print_log('The checkpoint was saved without the state of free '
                      'adversarial training: a fresh perturbation begins.',
                      logger='current', level='WARNING')
        else:
            self.model.load_training_state(state)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GANOptimWrapperConstructor:
    """Builds the players' optimizers for a :class:`FreeAdversarialGAN`.

    Args:
        optim_wrapper_cfg (dict): A config for 'discriminator' and one for
            'generator', each as ``optim_wrapper`` is elsewhere. Of
            'averaged' see :func:`mmpsw.configs.apply_fragments`.
        paramwise_cfg (dict, optional): Those of both players.

    Raises:
        ValueError: A player has none, or gradients are to be accumulated.
    """

    def __init__(self, optim_wrapper_cfg: dict,
                 paramwise_cfg: dict | None = None):
        for name in PLAYERS:
            cfg = optim_wrapper_cfg.get(name)
            if not isinstance(cfg, dict):
                raise ValueError(
                    f'optim_wrapper.{name} is missing, because a GAN trains '
                    f'two players ({" and ".join(PLAYERS)}): give each its '
                    "own, as dict(optimizer=dict(type='Adam', lr=2e-4)).")
            if cfg.get('accumulative_counts', 1) != 1:
                raise ValueError(
                    f'optim_wrapper.{name}.accumulative_counts='
                    f'{cfg["accumulative_counts"]} is not possible, because '
                    'a replay needs the discriminator that the replay before '
                    'it has updated: leave it out, and use a larger batch.')
        self.cfg = {name: dict(optim_wrapper_cfg[name]) for name in PLAYERS}
        self.paramwise_cfg = paramwise_cfg

    def __call__(self, model: nn.Module) -> GANOptimWrapperDict:
        """Builds them; the players may be wrapped for several processes."""
        model = unwrapped(model)
        return GANOptimWrapperDict(model, **{
            name: build_optim_wrapper(getattr(model, name), dict(
                cfg, paramwise_cfg=self.paramwise_cfg))
            for name, cfg in self.cfg.items()})

"""One optimizer, followed through a run: its updates, samples and average."""
import logging
from collections.abc import Mapping
from typing import Any

from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from mmpsw.methods.averaging import Resampling
from mmpsw.models import unwrapped
from mmpsw.runtime.epochs import epoch_length
from mmpsw.runtime.ranks import mean_over_ranks
from mmpsw.runtime.resume import named_tensors

from .settings import PSWSettings
from .statistics import owned_statistics

__all__ = ['Follower', 'follow', 'happened', 'optim_wrappers', 'warn']


class Follower:
    """A resampler, and whether its optimizer has updated the weights.

    The clock is the run's own iteration, ``runner.iter + 1``. However many
    updates a model makes in an iteration, they are one sample.

    Args:
        settings (PSWSettings): How the weights are averaged.
        optimizer (Optimizer): Who updates them.
        **options: Those of :meth:`PSWSettings.build`.

    Attributes:
        resampler (PeriodicResampler): What averages.
        heard (RemovableHandle): Of the hook that hears of updates.

    Raises:
        ValueError: The settings do not fit the run.
    """

    def __init__(self, settings: PSWSettings, optimizer: Optimizer,
                 **options: Any):
        self.settings = settings
        self.resampler = settings.build(optimizer, **options)
        self._stepped = False
        self._updated: set[Tensor] = set()
        self._skipped: Tensor | None = None
        # An optimizer around another one, as timm's Lookahead, may leave out
        # torch's own constructor: its hooks are heard from here on.
        optimizer.zero_grad()
        self.heard = optimizer.register_step_post_hook(self._note_step)

    def after_iteration(self, iteration: int) -> Resampling | None:
        """Sample where there was an update; resample where a period ends.

        Args:
            iteration (int): The run's, from 1.
        """
        updated, self._stepped = self._stepped, False
        skipped, self._skipped = self._skipped, None
        if updated and skipped is not None:
            # A GPU is waited for only where it matters.
            updated = (not self.resampler.in_window(iteration)
                       or not skipped.item())
        self.resampler.weights.updated, self._updated = self._updated, set()
        return self.resampler.step(iteration, updated)

    def live(self) -> dict[str, Tensor]:
        """The live tensors that are averaged, by their names.

        Also while the average is in the model.
        """
        return self.resampler.weights.named(
            [tensor.detach() for tensor in self.resampler.live])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; tensors are on the CPU."""
        state = self.resampler.state_dict()
        for part in ('mean', 'previous'):
            if part in state:
                state[part] = {name: tensor.cpu()
                               for name, tensor in state[part].items()}
        return dict(state, settings=self.settings.to_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> str:
        """Continue from a state.

        Returns:
            str: Why a fresh period begins instead; empty where it does not.

        Raises:
            ValueError: The state is of another model.
        """
        mine, saved = self.settings.to_dict(), state['settings']
        others = [f'{key}={saved.get(key)!r} became {mine.get(key)!r}'
                  for key in {**saved, **mine}
                  if saved.get(key) != mine.get(key)]
        if not others:
            self.resampler.load_state_dict(state)
        return ', '.join(others)

    def _note_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._stepped = True
        if not self.resampler.samples:  # which then looks what is trained
            # An orthogonal matrix, which has no name in the model, is none.
            self._updated.update(
                param for group in optimizer.param_groups
                for param in group['params'] if param.grad is not None
                and param in self.resampler.weights.names)
        self._skipped = getattr(optimizer, 'found_inf', None)


def happened(optimizer: Optimizer) -> bool:
    """Whether a step changes the weights, asked by its hooks.

    A GradScaler leaves the skipping to fused optimizers, and sets
    ``found_inf`` on them while they step.
    """
    found_inf = getattr(optimizer, 'found_inf', None)
    return found_inf is None or not found_inf.item()


def follow(runner: Runner,
           settings: Mapping[str, PSWSettings]) -> dict[str, Follower]:
    """Followers for the optimizers of a run.

    Args:
        runner (Runner): When it is about to train.
        settings (Mapping[str, PSWSettings]): By the names that
            :func:`optim_wrappers` gives.

    Raises:
        ValueError: The settings do not fit the run.
    """
    wrappers = optim_wrappers(runner)
    model = unwrapped(runner.model)
    names = {tensor: name for name, tensor in named_tensors(model).items()}
    owned = owned_statistics(
        model, {name: one.optimizer for name, one in wrappers.items()})
    # By the names under which they are saved, which a hook may change.
    statistics = {
        owner: {names.get(module._buffers[own], key): (module, own)
                for key, (module, own) in places.items()}
        for owner, places in owned.items()}
    return {
        name: Follower(
            one, wrappers[name].optimizer,
            epoch_length=epoch_length(runner.train_loop),
            total=runner.max_iters,
            accumulation=wrappers[name]._accumulative_counts,
            names=names,
            statistics=statistics[name] if one.buffers != 'keep' else {},
            reduce_statistics=(
                mean_over_ranks if get_world_size() > 1 else None),
            warn=warn)
        for name, one in settings.items()
    }


def warn(message: str) -> None:
    """Log a warning."""
    print_log(message, logger='current', level=logging.WARNING)


def optim_wrappers(runner: Runner) -> dict[str, OptimWrapper]:
    """By their names in an OptimWrapperDict; a single one has none."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return dict(wrapper.items())
    return {'': wrapper}

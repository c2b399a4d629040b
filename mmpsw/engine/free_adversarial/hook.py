"""The Hook: what needs the runner."""
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmpsw.models import unwrapped
from mmpsw.registry import HOOKS

__all__ = ['GANHook']


@HOOKS.register_module()
class GANHook(Hook):
    """Does for a :class:`FreeAdversarialGAN` what needs the runner.

    - Before training it refuses data that do not fit the model.
    - At each validation and test it draws a grid of generated images, a
      class each row, always from the same z; the visualizer keeps it as
      'samples'.
    - It lets no checkpoint be saved whose weights are not finite, so that
      the newest one is good.

    Args:
        columns (int): Images of each class in the grid. Defaults to 8.
        rows (int): Classes in the grid, at most. Defaults to 10.
    """

    # After those that put an average into the model: it draws from that.
    priority = 'BELOW_NORMAL'

    def __init__(self, columns: int = 8, rows: int = 10):
        self.columns, self.rows = columns, rows

    def before_train(self, runner: Runner) -> None:
        """Look at the training data.

        Raises:
            ValueError: The last batch of an epoch is smaller, or there is
                another number of classes than in the model.
        """
        loader = runner.train_loop.dataloader
        _check_batches(loader)
        classes = getattr(loader.dataset, 'metainfo', {}).get('classes')
        count = unwrapped(runner.model).num_classes
        if classes is not None and len(classes) != count:
            raise ValueError(
                f'The training data has {len(classes)} classes, but the '
                f'networks have num_classes={count}: set num_classes of '
                'model.generator and model.discriminator to '
                f'{len(classes)}.')

    def before_val_epoch(self, runner: Runner) -> None:
        """Draw the grid, and begin with the z of every validation."""
        self._draw(runner)

    def before_test_epoch(self, runner: Runner) -> None:
        """Draw the grid, and begin with the z of every validation."""
        self._draw(runner)

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict) -> None:
        """Leave the newest checkpoint as it is, if this one would be bad.

        Raises:
            ValueError: A weight is not finite.
        """
        for name, weight in checkpoint['state_dict'].items():
            if not torch.isfinite(weight).all():
                raise ValueError(
                    f'{name} is not finite at iteration {runner.iter + 1}, so '
                    'that the run cannot continue; the newest checkpoint is '
                    'from before: resume from it with a lower learning rate, '
                    'or without --amp.')

    def _draw(self, runner: Runner) -> None:
        from torchvision.utils import make_grid  # all else works without
        model = unwrapped(runner.model)
        model.start_validation()
        model.eval()
        labels = torch.arange(min(self.rows, model.num_classes))
        images = model.sample(labels.repeat_interleave(self.columns),
                              torch.Generator().manual_seed(0))
        grid = make_grid(images.float(), nrow=self.columns, padding=1,
                         normalize=True, value_range=(-1, 1))
        runner.visualizer.add_image(
            'samples', grid.mul(255).round().byte().permute(1, 2, 0).cpu(
            ).numpy(), step=runner.iter)


def _check_batches(loader: DataLoader) -> None:
    size = loader.batch_size or 1
    rest = len(loader.sampler) % size
    if rest and not (isinstance(loader.sampler, InfiniteSampler)
                     or loader.drop_last):
        raise ValueError(
            f"An epoch's last batch has {rest} images instead of {size}, but "
            'free adversarial training needs batches of one size, because '
            'the perturbation goes from one to the next: set '
            'train_dataloader.drop_last=True, or '
            "train_dataloader.sampler.type='InfiniteSampler'.")

"""Training labels of which some are wrong, to see what a method does then."""
import numpy as np
from mmpretrain.datasets import CustomDataset

from mmpsw.registry import DATASETS

__all__ = ['NoisyLabels']


@DATASETS.register_module()
class NoisyLabels(CustomDataset):
    """Class folders in which a share of the labels is drawn at random.

    Symmetric label noise: for each sample chosen, the label is drawn from all
    classes with equal probability (so that one in as many as there are
    classes stays right). The choice depends on ``seed`` alone.

    Args:
        noise (float): The share of labels in [0, 1] that are replaced,
            rounded to whole samples.
        seed (int): The seed of its own generator. Defaults to 0.
        **kwargs: Those of mmpretrain's CustomDataset.

    Raises:
        ValueError: ``noise`` is out of its range.
    """

    def __init__(self, noise: float, seed: int = 0, **kwargs):
        if not 0 <= noise <= 1:
            raise ValueError(f'noise={noise!r} is not possible, because it is '
                             'a share of the labels: use a number in [0, 1].')
        self.noise = noise
        self.seed = seed
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """Read the samples, then replace some labels."""
        samples = super().load_data_list()
        generator = np.random.default_rng(self.seed)
        chosen = generator.permutation(len(samples))
        chosen = chosen[:round(self.noise * len(samples))]
        labels = generator.integers(len(self.CLASSES), size=len(chosen))
        for index, label in zip(chosen, labels, strict=True):
            samples[index]['gt_label'] = int(label)
        return samples

"""How near generated images are to real ones, by features of both.

The formulas are those of FID and the Inception score, and of improved
precision and recall. Their names are kept for Inception's features: with
another network's, a value is comparable only to others of that network.
"""
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.evaluator import BaseMetric
from mmengine.runner import load_checkpoint
from torch import Tensor

from mmpsw.models import build_model
from mmpsw.registry import METRICS, MODELS

__all__ = ['ClassifierFeatures', 'GeneratedImages', 'InceptionFeatures',
           'class_score', 'frechet_distance', 'precision_and_recall']


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Between Gaussians that are fitted to two sets of features.

    Heusel et al. (2017, arXiv 1706.08500): |m - m'|^2 + tr(S + S' -
    2 (S S')^(1/2)). Few samples make it too large: compare equal numbers.

    Args:
        one, other (Tensor): (N, D) and (M, D).
    """
    one, other = one.double(), other.double()
    means = (one.mean(0) - other.mean(0)).square().sum()
    cov, cov_other = (torch.atleast_2d(x.T.cov()) for x in (one, other))
    # S S' has the eigenvalues of R S' R with R = S^(1/2), which is symmetric.
    values, vectors = torch.linalg.eigh(cov)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    values = torch.linalg.eigvalsh(root @ cov_other @ root)
    trace = values.clamp(min=0).sqrt().sum()
    return float(means + cov.trace() + cov_other.trace() - 2 * trace)


def class_score(logits: Tensor, splits: int = 1) -> float:
    """exp of the mean KL(p(y|x) || p(y)), between 1 and the classes' number.

    Salimans et al. (2016, arXiv 1606.03498).

    Args:
        logits (Tensor): (N, K), what a classifier says of generated images.
        splits (int): The mean over so many parts is taken. Defaults to 1.
    """
    scores = []
    for log_p in F.log_softmax(logits.double(), dim=1).chunk(splits):
        p = log_p.exp()
        scores.append((p * (log_p - p.mean(0).log())).sum(1).mean().exp())
    return float(torch.stack(scores).mean())


def precision_and_recall(real: Tensor, fake: Tensor,
                         neighbours: int = 3) -> tuple[float, float]:
    """The share of each set that lies in the other's manifold.

    Kynkaanniemi et al. (2019, arXiv 1904.06991): the manifold is the union of
    balls around the samples, as wide as to their k-th neighbour.

    Args:
        real, fake (Tensor): Features, (N, D) and (M, D), N and M > k.
        neighbours (int): k. Defaults to 3.

    Returns:
        Tuple[float, float]: How many generated images look real, and how many
        real ones could be generated.
    """
    between = torch.cdist(real, fake)

    def radii(samples: Tensor) -> Tensor:  # the nearest is the sample itself
        return torch.cdist(samples, samples).kthvalue(neighbours + 1).values

    precision = (between <= radii(real)[:, None]).any(0)
    recall = (between <= radii(fake)[None]).any(1)
    return float(precision.float().mean()), float(recall.float().mean())


@MODELS.register_module()
class ClassifierFeatures:
    """Features and logits of a classifier that mmpretrain has trained.

    Args:
        name (str): Of the data that it has learnt: in front of the metrics.
        config (str): The path of the classifier's config.
        checkpoint (str): The path of its weights.

    Raises:
        ValueError: There are no weights; it says how to train them.
    """

    metrics = ('frechet', 'class_score', 'class_accuracy')
    splits = 1

    def __init__(self, name: str, config: str, checkpoint: str):
        if not Path(checkpoint).is_file():
            raise ValueError(
                f"'{checkpoint}' does not exist, but generated images are "
                f'measured by the features of a classifier: train it with '
                f'python tools/train.py {config} --seed 0, or set its place '
                'with --cfg-options val_evaluator.features.checkpoint=FILE '
                'test_evaluator.features.checkpoint=FILE')
        self.name = name
        self.model = build_model(Config.fromfile(config)).eval()
        load_checkpoint(self.model, checkpoint, map_location='cpu',
                        logger='silent')

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) RGB bytes to features and logits."""
        inputs = self.model.data_preprocessor(
            dict(inputs=images.flip(1)))['inputs']  # OpenCV's BGR
        features = self.model.extract_feat(inputs)
        return features[-1], self.model.head(features)


@MODELS.register_module()
class InceptionFeatures:
    """Those of Inception v3, with which FID is the published one.

    Needs torch-fidelity. Without ``weights`` it downloads them.

    Args:
        weights (str, optional): The path of pt_inception-2015-12-05-6726825d
            .pth. Defaults to None.

    Raises:
        ValueError: torch-fidelity is not installed.
    """

    name = 'inception'
    metrics = ('FID', 'IS')
    splits = 10  # as it is published

    def __init__(self, weights: str | None = None):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import (
                FeatureExtractorInceptionV3,
            )
        except ImportError as error:
            raise ValueError(
                'Inception features need torch-fidelity, which cannot be '
                "imported: pip install torch-fidelity, or use features=dict("
                "type='mmpsw.ClassifierFeatures', ...), which needs no "
                'download.') from error
        self.model = FeatureExtractorInceptionV3(
            'inception-v3-compat', ['2048', 'logits_unbiased'],
            feature_extractor_weights_path=weights).to(get_device()).eval()

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) RGB bytes to features and logits."""
        return self.model(images)


@METRICS.register_module()
class GeneratedImages(BaseMetric):
    """Frechet distance, score, precision and recall of generated images.

    Logged as NAME/frechet, NAME/class_score, NAME/precision and NAME/recall
    with a classifier's features, and as inception/FID and inception/IS with
    Inception's. Real images are looked at in the first validation only.
    A classifier tells NAME/class_accuracy too: the share of images that it
    takes for the class that they were generated as.

    Args:
        features (dict): :class:`ClassifierFeatures` or
            :class:`InceptionFeatures`.
        neighbours (int): See :func:`precision_and_recall`. Defaults to 3.
        most (int): Precision and recall are of so many samples, the same at
            each validation, as the distances between all of them are held.
            Defaults to 10000.
        **kwargs: Those of BaseMetric.

    Raises:
        ValueError: The features have no weights, or no library.
    """

    def __init__(self, features: dict, neighbours: int = 3,
                 most: int = 10000, **kwargs: Any):
        super().__init__(**kwargs)
        self.features = MODELS.build(features)
        self.prefix = self.prefix or self.features.name
        self.neighbours, self.most = neighbours, most
        self.real: Tensor | None = None

    @torch.no_grad()
    def process(self, data_batch: Any, data_samples: list[dict]) -> None:
        """Keeps features of generated images, and once those of real ones."""
        fake, logits = self._features(data_samples, 'fake')
        real = (self._features(data_samples, 'real')[0] if self.real is None
                else [None] * len(fake))
        labels = [sample['label'] for sample in data_samples]
        self.results += zip(real, fake, logits, labels)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """All of them, of all images."""
        real, fake, logits, labels = zip(*results)
        if self.real is None:
            self.real = torch.stack(real)
        fake, logits = torch.stack(fake), torch.stack(logits)
        # Of data that is sorted by its classes, a part has them all too.
        order = torch.randperm(
            len(fake), generator=torch.Generator().manual_seed(0))
        some = order[:self.most].sort().values
        distance, score, *accuracy = self.features.metrics
        precision, recall = precision_and_recall(
            self.real[some], fake[some], self.neighbours)
        right = logits.argmax(1) == torch.tensor(labels)
        return {distance: frechet_distance(self.real, fake),
                score: class_score(logits[order], self.features.splits),
                **dict.fromkeys(accuracy, float(right.float().mean())),
                'precision': precision, 'recall': recall}

    def _features(self, samples: list[dict],
                  key: str) -> tuple[Tensor, Tensor]:
        images = torch.stack([sample[key] for sample in samples])
        features, logits = self.features(_as_bytes(images))
        return features.float().cpu(), logits.float().cpu()


def _as_bytes(images: Tensor) -> Tensor:
    """From [-1, 1]; files hold bytes, and so do those that are compared."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).byte()

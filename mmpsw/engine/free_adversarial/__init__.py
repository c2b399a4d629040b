"""The seam to mmengine for free adversarial training of GANs."""
from .hook import GANHook
from .metrics import ClassifierFeatures, GeneratedImages, InceptionFeatures
from .model import FreeAdversarialGAN
from .networks import ResidualDiscriminator, ResidualGenerator
from .optimizers import GANOptimWrapperConstructor, GANOptimWrapperDict

__all__ = [
    'ClassifierFeatures', 'FreeAdversarialGAN', 'GANHook',
    'GANOptimWrapperConstructor', 'GANOptimWrapperDict', 'GeneratedImages',
    'InceptionFeatures', 'ResidualDiscriminator', 'ResidualGenerator'
]

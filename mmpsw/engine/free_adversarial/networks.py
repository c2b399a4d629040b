"""The residual networks of SNGAN, conditioned on a class.

Widths and depths are those of julightzhong10/fastgan, which follow Miyato et
al. (2018, arXiv 1802.05957); the attention block is that of SAGAN (Zhang et
al. 2019, arXiv 1805.08318).
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as normalised

from mmpsw.methods.free_adversarial import Scores
from mmpsw.registry import MODELS

__all__ = ['ResidualDiscriminator', 'ResidualGenerator']

# Channels after each block, in units of the width, by the image's size.
_UP = {32: (1, 1, 1, 1), 64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1)}
_DOWN = {32: (1, 1, 1, 1), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16)}
_BOTTOM = 4  # pixels where the generator begins


@MODELS.register_module()
class ResidualGenerator(nn.Module):
    """From noise and classes to images in [-1, 1].

    Args:
        image_size (int): 32, 64 or 128 pixels.
        num_classes (int): How many classes; 1 where there are none.
        width (int): Channels of the last block. Defaults to 64.
        noise_size (int): Numbers that an image begins with. Defaults to 128.
        channels (int): Of an image. Defaults to 3.
        spectral_norm (bool): Whether each layer's weight is divided by its
            largest singular value. Defaults to False.
        attention (bool): Whether to attend, at half of the size but no more
            than 32 pixels. Defaults to False.

    Raises:
        ValueError: There is no such size.
    """

    def __init__(self, image_size: int, num_classes: int, width: int = 64,
                 noise_size: int = 128, channels: int = 3,
                 spectral_norm: bool = False, attention: bool = False):
        super().__init__()
        sizes = _widths(_UP, image_size, width)
        self.noise_size, self.num_classes = noise_size, num_classes
        self.first = _prepared(
            nn.Linear(noise_size, sizes[0] * _BOTTOM**2), spectral_norm)
        self.blocks = nn.ModuleList()
        pixels = _BOTTOM
        for inputs, outputs in zip(sizes, sizes[1:]):
            if attention and pixels == min(32, image_size // 2):
                self.blocks.append(Attention(inputs, spectral_norm))
            self.blocks.append(
                UpBlock(inputs, outputs, num_classes, spectral_norm))
            pixels *= 2
        self.norm = nn.BatchNorm2d(sizes[-1])
        self.last = _conv(sizes[-1], channels, 3, spectral_norm)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """(N, noise_size) and (N, ) classes to (N, channels, size, size)."""
        x = self.first(noise).unflatten(1, (-1, _BOTTOM, _BOTTOM))
        for block in self.blocks:
            x = block(x, labels)
        return self.last(F.relu(self.norm(x))).tanh()


@MODELS.register_module()
class ResidualDiscriminator(nn.Module):
    """From images and their classes to :class:`Scores`.

    Args:
        image_size (int): 32, 64 or 128 pixels.
        num_classes (int): How many classes; 1 where there are none.
        width (int): Channels of the first block. Defaults to 64.
        channels (int): Of an image. Defaults to 3.
        head (str): How it uses the classes: 'auxiliary', a classifier beside
            the score; or 'projection', a term of the score (Miyato and
            Koyama 2018). Defaults to 'auxiliary'.
        spectral_norm, attention (bool): See :class:`ResidualGenerator`.

    Raises:
        ValueError: There is no such size or head.
    """

    def __init__(self, image_size: int, num_classes: int, width: int = 64,
                 channels: int = 3, head: str = 'auxiliary',
                 spectral_norm: bool = False, attention: bool = False):
        super().__init__()
        if head not in ('auxiliary', 'projection'):
            raise ValueError(f"head={head!r} is not possible: use 'auxiliary' "
                             "or 'projection'.")
        sizes = (channels, *_widths(_DOWN, image_size, width))
        self.num_classes, self.head = num_classes, head
        self.blocks = nn.Sequential()
        pixels = image_size
        for index, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
            self.blocks.append(DownBlock(
                inputs, outputs, first=index == 0,
                down=index < 5,  # at 128 pixels the sixth keeps 4
                spectral_norm=spectral_norm))
            pixels //= 2
            if attention and pixels == min(32, image_size // 2):
                self.blocks.append(Attention(outputs, spectral_norm))
        self.score = _prepared(nn.Linear(sizes[-1], 1), spectral_norm)
        classes = (nn.Linear(sizes[-1], num_classes) if head == 'auxiliary'
                   else nn.Embedding(num_classes, sizes[-1]))
        self.classes = _prepared(classes, spectral_norm)

    def forward(self, images: Tensor, labels: Tensor) -> Scores:
        """(N, channels, size, size) and (N, ) classes to scores."""
        x = F.relu(self.blocks(images)).sum(dim=(2, 3))
        score = self.score(x).squeeze(1)
        if self.head == 'auxiliary':
            return Scores(score, self.classes(x))
        return Scores(score + (self.classes(labels) * x).sum(dim=1))


class UpBlock(nn.Module):
    """Twice the size; its batch norms' scale and shift are the class's."""

    def __init__(self, inputs: int, outputs: int, num_classes: int,
                 spectral_norm: bool):
        super().__init__()
        self.norm1 = ConditionalBatchNorm(inputs, num_classes)
        self.conv1 = _conv(inputs, outputs, 3, spectral_norm)
        self.norm2 = ConditionalBatchNorm(outputs, num_classes)
        self.conv2 = _conv(outputs, outputs, 3, spectral_norm)
        self.shortcut = _conv(inputs, outputs, 1, spectral_norm)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = F.relu(self.norm1(x, labels))
        h = self.conv1(F.interpolate(h, scale_factor=2))
        h = self.conv2(F.relu(self.norm2(h, labels)))
        # A 1x1 convolution before the copying is the same, and cheaper.
        return h + F.interpolate(self.shortcut(x), scale_factor=2)


class DownBlock(nn.Module):
    """Half the size, or the same."""

    def __init__(self, inputs: int, outputs: int, first: bool, down: bool,
                 spectral_norm: bool):
        super().__init__()
        self.first = first  # an image is not rectified
        hidden = outputs if first else inputs
        self.conv1 = _conv(inputs, hidden, 3, spectral_norm)
        self.conv2 = _conv(hidden, outputs, 3, spectral_norm)
        self.pool = nn.AvgPool2d(2) if down else nn.Identity()
        self.shortcut = (_conv(inputs, outputs, 1, spectral_norm)
                         if down or inputs != outputs else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x if self.first else F.relu(x))
        return self.pool(self.conv2(F.relu(h))) + self.shortcut(self.pool(x))


class ConditionalBatchNorm(nn.Module):
    """Batch norm with a scale and a shift for each class."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Embedding(num_classes, channels)
        self.shift = nn.Embedding(num_classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        scale, shift = self.scale(labels), self.shift(labels)
        return self.norm(x) * scale[..., None, None] + shift[..., None, None]


class Attention(nn.Module):
    """SAGAN's: each pixel attends to those of a quarter of the image."""

    def __init__(self, channels: int, spectral_norm: bool):
        super().__init__()
        self.query = _conv(channels, channels // 8, 1, spectral_norm)
        self.key = _conv(channels, channels // 8, 1, spectral_norm)
        self.value = _conv(channels, channels // 2, 1, spectral_norm)
        self.out = _conv(channels // 2, channels, 1, spectral_norm)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        query, key, value = (
            h.flatten(2).transpose(1, 2)
            for h in (self.query(x), F.max_pool2d(self.key(x), 2),
                      F.max_pool2d(self.value(x), 2)))
        h = F.scaled_dot_product_attention(query, key, value, scale=1.)
        h = h.transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.gain * self.out(h)


def _widths(table: dict[int, tuple[int, ...]], size: int,
            width: int) -> list[int]:
    if size not in table:
        raise ValueError(f'image_size={size!r} is not possible: use 32, 64 '
                         'or 128.')
    return [factor * width for factor in table[size]]


def _conv(inputs: int, outputs: int, size: int,
          spectral_norm: bool) -> nn.Module:
    return _prepared(
        nn.Conv2d(inputs, outputs, size, padding=size // 2), spectral_norm)


def _prepared(layer: nn.Module, spectral_norm: bool) -> nn.Module:
    nn.init.xavier_uniform_(layer.weight)
    return normalised(layer) if spectral_norm else layer

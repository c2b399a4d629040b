"""Free adversarial training of GANs (Zhong, Liu, Hsieh, arXiv 2008.03364).

The discriminator learns on real images that are perturbed against it. That
costs no pass of its own: the one backward pass that gives its weights'
gradient also gives the images' gradient, for the next of m replays::

    delta begins as clamp(N(0, 1), -eps, eps), and persists over minibatches
    for each minibatch x, m times:
        x_adv = clamp(x + delta, -1, 1)
        one backward of D's loss: gradients of D's weights and of x_adv
        step of D
        delta <- clamp(delta + tau sign(dx_adv), -eps, eps)

Losses are those of the official code, julightzhong10/fastgan: hinge, and an
auxiliary classifier's terms where the discriminator has one. Beside it is the
attack of Rob-GAN (Liu and Hsieh, arXiv 1807.10454), which pays for each step
of the perturbation with a pass of its own.
"""
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['FreePerturbation', 'Scores', 'fake_loss', 'generator_loss',
           'pgd_attack', 'real_loss', 'replay']


class FreePerturbation:
    """delta: a perturbation of the real images, kept over minibatches.

    Args:
        epsilon (float): Radius of the ball (maximum norm) that holds delta,
            where images are in [-1, 1]. 0 is the off switch.
        tau (float, optional): Step along the gradient's sign. Defaults to
            ``epsilon``.
        seed (int): Of the generator that delta begins with. Defaults to 0.

    Raises:
        ValueError: ``epsilon`` or ``tau`` is negative or not a number.
    """

    def __init__(self, epsilon: float, tau: float | None = None,
                 seed: int = 0):
        tau = epsilon if tau is None else tau
        for name, value in (('epsilon', epsilon), ('tau', tau)):
            if not 0 <= value < math.inf:
                raise ValueError(f'{name}={value!r} is not possible, because '
                                 'it is a length: use a number >= 0.')
        self.epsilon, self.tau = epsilon, tau
        self.generator = torch.Generator().manual_seed(seed)
        self.delta: Tensor | None = None
        self.replays = 0
        self.checked = False

    @torch.no_grad()
    def apply(self, images: Tensor) -> Tensor:
        """Perturbs images, and asks for their gradient.

        The range is looked at once, as a GPU has to be waited for.

        Args:
            images (Tensor): A minibatch in [-1, 1], always of one shape.

        Returns:
            Tensor: A leaf, in [-1, 1].

        Raises:
            ValueError: The first images are outside of [-1, 1], or the shape
                is another one than before.
        """
        self.check_range(images)
        if self.delta is None:
            noise = torch.randn(images.shape, generator=self.generator,
                                device=self.generator.device)
            self.delta = noise.clamp_(-self.epsilon, self.epsilon).to(images)
        if self.delta.shape != images.shape:
            raise ValueError(
                f'A minibatch has the shape {tuple(images.shape)}, but '
                'free adversarial training needs '
                f'{tuple(self.delta.shape)}, because the perturbation goes '
                'from one minibatch to the next: set '
                "train_dataloader.sampler.type='InfiniteSampler', or "
                'train_dataloader.drop_last=True.')
        self.delta = self.delta.to(images)  # after a resume
        return (images + self.delta).clamp_(-1, 1).requires_grad_()

    def check_range(self, images: Tensor) -> None:
        """Refuses images outside of [-1, 1], the first time."""
        if not self.checked:
            _check_range(images)
            self.checked = True

    @torch.no_grad()
    def update(self, grad: Tensor) -> None:
        """Goes up the gradient of the perturbed images.

        A scaled loss that overflowed leaves gradients that are no numbers:
        there delta stays, as torch's sign is 0.
        """
        self.delta.add_(grad.sign(), alpha=self.tau)
        self.delta.clamp_(-self.epsilon, self.epsilon)
        self.replays += 1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as tensors and plain numbers."""
        delta = None if self.delta is None else self.delta.cpu().clone()
        return dict(delta=delta, replays=self.replays,
                    generator=self.generator.get_state())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was taken."""
        self.delta, self.replays = state['delta'], state['replays']
        self.generator.set_state(state['generator'].cpu())


def replay(images: Tensor, perturbation: FreePerturbation, replays: int,
           loss: Callable[[Tensor], Tensor],
           update: Callable[[Tensor], Any]) -> None:
    """Trains a discriminator m times on a minibatch.

    In a plain loop, with ``fake = G(z).detach()`` drawn once::

        def update(loss):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        replay(images, perturbation, 2, lambda x: d_loss(D(x), D(fake)),
               update)

    Args:
        images (Tensor): Real images, (N, C, H, W) in [-1, 1].
        perturbation (FreePerturbation): Its delta is updated m times.
        replays (int): m.
        loss (Callable): The discriminator's loss of perturbed images.
        update (Callable): Does one backward pass of a loss, and a step.

    Raises:
        ValueError: See :meth:`FreePerturbation.apply`.
    """
    for _ in range(replays):
        perturbed = perturbation.apply(images)
        update(loss(perturbed))
        perturbation.update(perturbed.grad)


def pgd_attack(images: Tensor, loss: Callable[[Tensor], Tensor], steps: int,
               perturbation: FreePerturbation) -> Tensor:
    """Perturbs images by projected gradient descent from a random start.

    As Rob-GAN's: uniform in the ball, then ``steps`` of length ``tau`` along
    the gradient's sign, each followed by a projection into the ball.

    Args:
        images (Tensor): Real images, (N, C, H, W) in [-1, 1].
        loss (Callable): The discriminator's loss of perturbed images.
        steps (int): Each is a forward and a backward pass.
        perturbation (FreePerturbation): Of it the radius, the length of a
            step and the generator.

    Returns:
        Tensor: The perturbed images, without a gradient.

    Raises:
        ValueError: The first images are outside of [-1, 1].
    """
    perturbation.check_range(images)
    epsilon, generator = perturbation.epsilon, perturbation.generator
    start = torch.rand(images.shape, generator=generator,
                       device=generator.device)
    delta = start.mul_(2).sub_(1).mul_(epsilon).to(images)
    for _ in range(steps):
        perturbed = (images + delta).clamp_(-1, 1).requires_grad_()
        grad, = torch.autograd.grad(loss(perturbed), perturbed)
        delta = perturbed.detach() - images + perturbation.tau * grad.sign()
        delta.clamp_(-epsilon, epsilon)
    return (images + delta).clamp_(-1, 1)


def _check_range(images: Tensor) -> None:
    low, high = images.aminmax()
    if low < -1 or high > 1:
        raise ValueError(
            f'Images are in [{low:.4g}, {high:.4g}], but free adversarial '
            'training needs [-1, 1], because it clamps what it perturbs: '
            'normalise them with mean=[127.5] * 3 and std=[127.5] * 3.')


class Scores(NamedTuple):
    """What a discriminator says of N images.

    Attributes:
        real (Tensor): (N, ), higher for images that look real.
        classes (Tensor, optional): (N, K), the auxiliary classifier's logits.
    """

    real: Tensor
    classes: Tensor | None = None


def real_loss(real: Scores, labels: Tensor, weight: float = 1.) -> Tensor:
    """D's loss of real images: hinge, and the cross entropy of their classes.

    Args:
        real (Scores): Of N real images.
        labels (Tensor): (N, ), their classes.
        weight (float): Of the cross entropy.
    """
    loss = F.relu(1 - real.real).mean()
    if real.classes is None:
        return loss
    return loss + weight * F.cross_entropy(real.classes, labels)


def fake_loss(fake: Scores, weight: float = 1.) -> Tensor:
    """D's loss of generated images: hinge, and KL(uniform || prediction).

    The latter teaches D that they have no class, while G learns to give them
    one by D: with few steps, 0 conditions G better.

    Args:
        fake (Scores): Of N generated images.
        weight (float): Of the divergence.
    """
    loss = F.relu(1 + fake.real).mean()
    if fake.classes is None or not weight:
        return loss
    log_p = F.log_softmax(fake.classes, dim=1)
    return loss + weight * (-log_p.mean() - math.log(log_p.shape[1]))


def generator_loss(fake: Scores, labels: Tensor,
                   weight: float = 1.) -> Tensor:
    """G's loss: its images should look real, and of their class."""
    loss = -fake.real.mean()
    if fake.classes is None:
        return loss
    return loss + weight * F.cross_entropy(fake.classes, labels)

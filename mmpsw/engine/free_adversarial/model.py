"""The model: two players, and how a step trains them."""
import math
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner.checkpoint import get_state_dict
from torch import Tensor

from mmpsw.methods.free_adversarial import (
    FreePerturbation,
    Scores,
    fake_loss,
    generator_loss,
    pgd_attack,
    real_loss,
    replay,
)
from mmpsw.models import unwrapped
from mmpsw.registry import MODELS

__all__ = ['FreeAdversarialGAN']


@MODELS.register_module()
class FreeAdversarialGAN(BaseModel):
    """A class-conditional GAN, with free adversarial training.

    FastGAN (Zhong, Liu, Hsieh, arXiv 2008.03364). A batch is one step of the
    generator::

        train_step:
            for each of discriminator_steps parts of the batch:
                fake = G(z), the same for all replays
                replays times: step of D on real + delta, and fake
            step of G, with a fresh z

    It needs ``optim_wrapper.constructor='mmpsw.GANOptimWrapperConstructor'``,
    which also saves delta, and :class:`GANHook`. Validating and testing
    generate an image for each real one, of its class.

    With several processes each has a delta of its own; a resumed run goes on
    with that of the first one in all of them.

    Args:
        generator (dict): ``forward(noise, labels)`` returns images in
            [-1, 1]; has ``noise_size`` and ``num_classes``.
        discriminator (dict): ``forward(images, labels)`` returns
            :class:`Scores`.
        epsilon (float): Radius of the perturbation; 0 is the off switch.
            Defaults to 0.006, the paper's for CIFAR-10.
        tau (float, optional): The perturbation's step. Defaults to
            ``epsilon``.
        replays (int): Steps of D on a minibatch. Defaults to 2.
        pgd_steps (int): Instead of replays: steps of Rob-GAN's attack on each
            minibatch, before a step of D. Defaults to 0.
        discriminator_steps (int): Minibatches in a batch, and so for a step
            of G. Defaults to 1.
        class_weights (dict): Of the losses on classes: 'real' and 'fake' of
            D, and 'generator'. All default to 1.
        patience (int): After so many steps of G in a row in which D had
            nothing to learn the run stops. Defaults to 1000.
        data_preprocessor (dict, optional): One that yields images in
            [-1, 1].

    Raises:
        ValueError: A number is out of its range, or the two networks have
            another number of classes.
    """

    def __init__(self,
                 generator: dict,
                 discriminator: dict,
                 epsilon: float = 0.006,
                 tau: float | None = None,
                 replays: int = 2,
                 pgd_steps: int = 0,
                 discriminator_steps: int = 1,
                 class_weights: dict | None = None,
                 patience: int = 1000,
                 data_preprocessor: dict | None = None):
        super().__init__(data_preprocessor)
        self.generator = MODELS.build(generator)
        self.discriminator = MODELS.build(discriminator)
        self.num_classes = self.generator.num_classes
        if self.discriminator.num_classes != self.num_classes:
            raise ValueError(
                f'model.generator.num_classes={self.num_classes}, but that of '
                f'the discriminator is {self.discriminator.num_classes}: give '
                'both the number of classes of the data.')
        for name, value, least in (
                ('replays', replays, 1), ('patience', patience, 1),
                ('discriminator_steps', discriminator_steps, 1),
                ('pgd_steps', pgd_steps, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f'model.{name}={value!r} is not possible: '
                                 f'use an integer >= {least}.')
        if pgd_steps and replays > 1:
            raise ValueError(
                f'model.pgd_steps={pgd_steps} and model.replays={replays} '
                'cannot be used together, because each perturbs the images '
                'in its own way: set replays=1, or pgd_steps=0.')
        self.replays, self.patience = replays, patience
        self.pgd_steps = pgd_steps
        self.discriminator_steps = discriminator_steps
        self.class_weights = dict(real=1., fake=1., generator=1.)
        unknown = (class_weights or {}).keys() - self.class_weights.keys()
        if unknown:
            raise ValueError(
                f'model.class_weights has no {", ".join(sorted(unknown))}: '
                f'use {", ".join(self.class_weights)}.')
        self.class_weights.update(class_weights or {})
        # That of the run: the Runner sets it before it builds a model.
        seed = torch.initial_seed()
        self.perturbation = FreePerturbation(epsilon, tau, seed + get_rank())
        self.noise = torch.Generator().manual_seed(seed)
        self.steps = self.stalled = 0  # of G; those in which D stood still
        self.start_validation()
        self.to(memory_format=torch.channels_last)  # a third faster on a CPU

    def train_step(self, data: Any,
                   optim_wrapper: OptimWrapperDict) -> dict[str, float]:
        """Trains both players on a batch.

        A GPU is waited for once, at the end, for what is logged.

        Raises:
            ValueError: The batch does not fit, a loss is not finite, or the
                discriminator has had nothing to learn for too long.
        """
        images, labels = self._batch(data, training=True)
        parts = self.discriminator_steps
        if len(images) % parts:
            raise ValueError(
                f'A batch of {len(images)} images cannot be split into '
                f'model.discriminator_steps={parts} minibatches: set '
                'train_dataloader.batch_size to a multiple of it.')
        idle = []
        for part in zip(images.chunk(parts), labels.chunk(parts)):
            seen = self._train_discriminator(
                *part, optim_wrapper['discriminator'])
            idle.append(seen.pop('idle'))
        seen['loss_generator'] = self._train_generator(
            len(images) // parts, optim_wrapper['generator'])
        values = torch.stack([*seen.values(), *idle]).tolist()
        logs = dict(zip(seen, values))
        for was_idle in values[len(logs):]:
            self.stalled = self.stalled + 1 if was_idle else 0
        self.steps += 1
        self._check_health(logs)
        return logs

    def _train_discriminator(self, images: Tensor, labels: Tensor,
                             wrapper: OptimWrapper) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        with torch.no_grad(), wrapper.optim_context(self.generator):
            fake, fake_labels = self._generate(len(images))

        def loss(perturbed: Tensor) -> Tensor:
            with wrapper.optim_context(self.discriminator):
                real_scores = _in_fp32(self.discriminator(perturbed, labels))
                fake_scores = _in_fp32(self.discriminator(fake, fake_labels))
            total = real_loss(
                real_scores, labels, self.class_weights['real']) + fake_loss(
                    fake_scores, self.class_weights['fake'])
            seen.update(loss_discriminator=total.detach(),
                        real_score=real_scores.real.detach(),
                        fake_score=fake_scores.real.detach())
            return total

        if self.pgd_steps:
            wrapper.update_params(loss(self._attack(images, labels, wrapper)))
        else:
            replay(images, self.perturbation, self.replays, loss,
                   wrapper.update_params)
        idle = _nothing_to_learn(seen['real_score'], seen['fake_score'])
        return {name: value.mean() for name, value in seen.items()} | dict(
            idle=idle.float())

    def _attack(self, images: Tensor, labels: Tensor,
                wrapper: OptimWrapper) -> Tensor:
        # As in the official code: no power iterations of spectral norm.
        critic = unwrapped(self.discriminator).eval()

        def loss(perturbed: Tensor) -> Tensor:
            with wrapper.optim_context(critic):
                scores = critic(perturbed, labels)
            return real_loss(
                _in_fp32(scores), labels, self.class_weights['real'])

        perturbed = pgd_attack(images, loss, self.pgd_steps,
                               self.perturbation)
        critic.train()
        return perturbed

    def _train_generator(self, count: int, wrapper: OptimWrapper) -> Tensor:
        # Without DDP, which would wait for gradients that nobody needs.
        critic = unwrapped(self.discriminator).requires_grad_(False)
        with wrapper.optim_context(self.generator):
            fake, labels = self._generate(count)
            scores = critic(fake, labels)
        loss = generator_loss(
            _in_fp32(scores), labels, self.class_weights['generator'])
        wrapper.update_params(loss)
        critic.requires_grad_(True)
        return loss.detach()

    def _generate(self, count: int) -> tuple[Tensor, Tensor]:
        """Images, and the classes that they are of, drawn at random.

        All processes draw for all, and take their own: one state of the
        generator is that of each.
        """
        total, rank = count * get_world_size(), get_rank()
        noise = torch.randn(total, unwrapped(self.generator).noise_size,
                            generator=self.noise)
        labels = torch.randint(self.num_classes, (total, ),
                               generator=self.noise)
        own = slice(count * rank, count * (rank + 1))
        device = self.data_preprocessor.device
        noise, labels = (x[own].to(device, non_blocking=True)
                         for x in (noise, labels))
        return self.generator(noise, labels), labels

    def _batch(self, data: Any, training: bool) -> tuple[Tensor, Tensor]:
        labels = self._labels(data['data_samples'])  # on the CPU yet
        images = self.data_preprocessor(data, training)['inputs']
        return images, labels.to(images.device, non_blocking=True)

    def _labels(self, data_samples: list) -> Tensor:
        labels = torch.cat([sample.gt_label for sample in data_samples])
        if labels.max() >= self.num_classes:
            raise ValueError(
                f'The data has an image of class {int(labels.max())}, but '
                f'the networks have num_classes={self.num_classes}: set '
                'num_classes of model.generator and model.discriminator to '
                'the number of classes.')
        return labels

    def _check_health(self, logs: dict[str, float]) -> None:
        bad = [name for name, value in logs.items()
               if not math.isfinite(value)]
        if bad:
            raise ValueError(
                f'{bad[0]} is {logs[bad[0]]} at step {self.steps}, so '
                'that the run cannot continue; the newest checkpoint is from '
                'before: resume from it with a lower learning rate, or '
                'without --amp.')
        if self.stalled >= self.patience * self.discriminator_steps:
            raise ValueError(
                'The discriminator has collapsed: for '
                f'{self.patience} steps until step {self.steps} it '
                'has either told all images apart with a margin, or given '
                'all of them the same score, so that nothing more is learnt '
                f'(real {logs["real_score"]:.3g}, generated '
                f'{logs["fake_score"]:.3g}). The newest checkpoint is left: '
                'train with a lower learning rate, another epsilon, or '
                'spectral_norm=True of model.discriminator.')

    def start_validation(self) -> None:
        """The next validation begins with the z of every other one."""
        self.validation_noise = torch.Generator().manual_seed(get_rank())

    @torch.no_grad()
    def sample(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Generates an image of each class in ``labels``, in [-1, 1]."""
        net = unwrapped(self.generator)
        noise = torch.randn(len(labels), net.noise_size, generator=generator)
        device = self.data_preprocessor.device
        return net(noise.to(device), labels.to(device))

    def val_step(self, data: Any) -> list[dict[str, Tensor]]:
        """Real images, and as many generated ones of their classes."""
        images, labels = self._batch(data, training=False)
        fake = self.sample(labels, self.validation_noise)
        return [dict(real=real, fake=generated, label=label)
                for real, generated, label in zip(images, fake,
                                                  labels.tolist())]

    test_step = val_step

    def forward(self, inputs: Tensor, data_samples: list,
                mode: str = 'tensor') -> Any:
        """Scores of images; with mode='loss' the loss of G.

        The latter is a forward pass of G, by which PSW recalibrates it.
        """
        labels = self._labels(data_samples).to(inputs.device)
        if mode != 'loss':
            return self.discriminator(inputs, labels)
        fake, labels = self._generate(len(inputs))
        return dict(loss=generator_loss(
            self.discriminator(fake, labels), labels,
            self.class_weights['generator']))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Under plain names, also where each player is wrapped.

        mmengine's Runner saves those of the wrappers, but loads plain ones.
        """
        return get_state_dict(self, *args, **kwargs)

    def training_state(self) -> dict[str, Any]:
        """What a resumed run needs beside the weights."""
        return dict(perturbation=self.perturbation.state_dict(),
                    noise=self.noise.get_state(), steps=self.steps,
                    stalled=self.stalled)

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`training_state` was taken."""
        self.perturbation.load_state_dict(state['perturbation'])
        self.noise.set_state(state['noise'].cpu())
        self.steps, self.stalled = state['steps'], state['stalled']


def _nothing_to_learn(real: Tensor, fake: Tensor) -> Tensor:
    """Whether D tells all images apart with a margin, or scores all alike."""
    low, high = torch.cat([real, fake]).aminmax()
    return (real.min() >= 1) & (fake.max() <= -1) | (low == high)


def _in_fp32(scores: Scores) -> Scores:
    """Losses of half precision scores would be rounded."""
    return Scores(*(part if part is None else part.float()
                    for part in scores))

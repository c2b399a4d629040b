"""The replay: what it computes by hand, what it costs, where it is off."""
import copy
import math

import pytest
import torch
from torch import nn

from mmpsw.methods.free_adversarial import (
    FreePerturbation,
    Scores,
    fake_loss,
    generator_loss,
    pgd_attack,
    real_loss,
    replay,
)


class Counted(nn.Module):
    """A discriminator that counts its passes over real and fake images."""

    def __init__(self, fake):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(),
                                 nn.Linear(8, 1))
        self.fake = fake
        self.passes = dict(real=0, fake=0, backward=0)

    def forward(self, images):
        self.passes['fake' if images is self.fake else 'real'] += 1
        out = self.net(images)
        out.register_hook(self.count)
        return out

    def count(self, grad):
        self.passes['backward'] += 1


def batches(count=3, size=4):
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(size, 3, 2, 2, generator=generator, device='cpu') * 2
             - 1).to(torch.get_default_device()) for _ in range(count)]


def updater(optimizer):
    def update(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return update


def test_one_backward_gives_both_gradients():
    """Two replays: twice each pass, and none for the perturbation."""
    torch.manual_seed(0)
    (images, fake), backwards = batches(2), []
    net = Counted(fake)
    update = updater(torch.optim.Adam(net.parameters()))

    def counted(loss):
        backwards.append(loss)
        update(loss)

    perturbation = FreePerturbation(0.1)
    replay(images, perturbation, 2,
           lambda x: (1 - net(x)).mean() + net(fake).mean(), counted)
    assert net.passes == dict(real=2, fake=2, backward=4)
    assert len(backwards) == perturbation.replays == 2


def test_delta_by_hand():
    """D(x) = a x1 + b x2 with loss 1 - D: the gradient of x is -(a, b)."""
    net = nn.Linear(2, 1, bias=False)
    net.weight.data = torch.tensor([[0.5, -2.]])
    perturbation = FreePerturbation(0.25, tau=0.125)
    perturbation.delta = torch.tensor([[0.125, 0.0625]])
    seen, x = [], torch.tensor([[0.25, 0.96875]])

    def loss(perturbed):
        seen.append(perturbed.detach().clone())
        return 1 - net(perturbed).sum()

    replay(x, perturbation, 3, loss,
           updater(torch.optim.SGD(net.parameters(), lr=1.)))
    # x + delta; the second is clamped to 1. w grows by x_adv each time:
    # (0.5, -2), (0.875, -1), (1.125, 0); and delta falls by tau sign(w).
    expected = [[0.375, 1.], [0.25, 1.], [0.125, 1.]]
    assert torch.equal(torch.cat(seen), torch.tensor(expected))
    # The clamped pixel has a gradient too: delta's second is 0.0625 + 0.125,
    # then 0.1875 + 0.125, held at epsilon; the last sign is that of 0.
    assert torch.equal(perturbation.delta, torch.tensor([[-0.25, 0.25]]))
    assert net.weight.tolist() == [[1.25, 1.]]


def test_delta_begins_in_the_ball_and_persists():
    images = torch.zeros(64, 3, 2, 2)
    perturbation = FreePerturbation(0.5, seed=3)
    begin = perturbation.apply(images).detach()
    noise = torch.randn(images.shape, device='cpu',
                        generator=torch.Generator().manual_seed(3))
    assert torch.equal(begin.cpu(), noise.clamp(-0.5, 0.5))
    assert torch.equal(perturbation.apply(images), begin)
    perturbation.update(torch.full_like(images, math.nan))  # an overflow
    assert torch.equal(perturbation.delta, begin)


def test_switched_off_it_is_the_plain_loop():
    """epsilon = 0 and one replay: the same bits as without."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(),
                          nn.Linear(8, 1))
    ours, (fake, *data) = copy.deepcopy(plain), batches(5)
    optimizer = torch.optim.Adam(plain.parameters(), betas=(0., 0.9))
    for x in data:
        loss = (1 - plain(x)).relu().mean() + (1 + plain(fake)).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    perturbation = FreePerturbation(0.)
    update = updater(torch.optim.Adam(ours.parameters(), betas=(0., 0.9)))
    for x in data:
        replay(x, perturbation, 1, lambda x: (1 - ours(x)).relu().mean()
               + (1 + ours(fake)).relu().mean(), update)
    for one, other in zip(plain.parameters(), ours.parameters()):
        assert torch.equal(one, other)


@pytest.mark.parametrize('stop', [1, 2, 4])
def test_the_state_goes_on(stop):
    data = batches(5)

    def run(perturbation, data):
        for x in data:
            replay(x, perturbation, 2, lambda x: (x**3 - x).sum(),
                   lambda loss: loss.backward())

    whole, first, second = (FreePerturbation(0.2, 0.07) for _ in range(3))
    run(whole, data)
    run(first, data[:stop])
    second.load_state_dict(first.state_dict())
    run(second, data[stop:])
    assert torch.equal(whole.delta, second.delta)
    assert whole.replays == second.replays == 10
    assert torch.equal(whole.generator.get_state(),
                       second.generator.get_state())


def test_losses_by_their_definition():
    real = Scores(torch.tensor([2., 0.5]), torch.tensor([[1., 0.], [0., 2.]]))
    fake = Scores(torch.tensor([-3., 1.]), torch.tensor([[0., 1.], [3., 1.]]))
    labels = torch.tensor([0, 0])
    hinge = (0 + 0.5) / 2 + (0 + 2) / 2
    ce = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))]
    p = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))]  # of class 1
    kl = sum(sum(0.5 * math.log(0.5 / q) for q in (one, 1 - one))
             for one in p) / 2
    loss = real_loss(real, labels, 0.3) + fake_loss(fake, 0.7)
    assert float(loss) == pytest.approx(
        hinge + 0.3 * sum(ce) / 2 + 0.7 * kl, abs=1e-6)
    ce = [math.log(1 + math.exp(1)), math.log(1 + math.exp(-2))]
    assert float(generator_loss(fake, labels, 0.2)) == pytest.approx(
        1. + 0.2 * sum(ce) / 2, abs=1e-6)
    without = [Scores(scores.real) for scores in (real, fake)]
    assert float(real_loss(without[0], labels)
                 + fake_loss(without[1])) == hinge
    assert float(fake_loss(fake, 0.)) == 1
    assert float(generator_loss(without[1], labels)) == 1.


def test_pgd_against_the_official_loop():
    """linf_sgd.py and pgd.py of julightzhong10/fastgan, in short."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(),
                        nn.Linear(8, 1))
    images, = batches(1)
    images[0] = 1.  # clamped there
    epsilon, tau = 0.3, 0.125
    uniform = torch.rand(images.shape, device='cpu', generator=torch.Generator(
        ).manual_seed(3)).to(images) * 2 - 1
    x = (images + epsilon * uniform).clamp(-1, 1)
    for _ in range(4):
        x.requires_grad_()
        grad, = torch.autograd.grad(-net(x).mean(), x)
        x = x.detach() + tau * grad.sign()
        x = (images + (x - images).clamp(-epsilon, epsilon)).clamp(-1, 1)
    found = pgd_attack(images, lambda x: -net(x).mean(), 4,
                       FreePerturbation(epsilon, tau, seed=3))
    torch.testing.assert_close(found, x)
    assert (found - images).abs().max() <= epsilon + 1e-6
    assert not found.requires_grad and net[1].weight.grad is None


@pytest.mark.parametrize('action, words', [
    (lambda: FreePerturbation(-0.1), 'epsilon=-0.1 is not possible'),
    (lambda: FreePerturbation(0.1, math.nan), 'tau=nan is not possible'),
    (lambda: replay(torch.full((2, 3, 2, 2), 255.), FreePerturbation(0.1), 2,
                    None, None), r'\[255, 255\].*needs \[-1, 1\].*127.5'),
    (lambda: _two_sizes(), r'\(3, 3, 2, 2\).*drop_last=True'),
])
def test_what_does_not_fit_is_refused(action, words):
    with pytest.raises(ValueError, match=words):
        action()


def _two_sizes():
    perturbation = FreePerturbation(0.1)
    for size in (4, 3):
        perturbation.apply(torch.zeros(size, 3, 2, 2))

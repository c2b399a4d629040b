"""OPT: the maps, the chain rule, and what is made of the weights."""
import copy
from collections import Counter

import pytest
import torch
from scipy.linalg import polar
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from mmpsw.methods.orthogonal import (
    MAPS,
    Cayley,
    OrthogonalConv2d,
    OrthogonalTraining,
    descend,
    hyperspherical_energy,
    minimise_energy,
    newton_steps,
)

FREE = ['regulariser', 'gradient_descent']
CONSTRAINED = [name for name in MAPS if name not in FREE]
SIZES = [1, 2, 5, 16]


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def assert_close(one, other, atol=1e-12):
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


# The maps, in the authors' words: loops over rows, columns and reflections.


def cayley(r):
    a = r.triu() - r.triu().T
    eye = torch.eye(len(r))
    return (eye + a) @ torch.linalg.inv(eye - a)


def gram_schmidt(r):
    basis = []
    for row in r:
        for other in basis:
            row = row - (row @ other) * other
        basis.append(row / row.norm())
    return torch.stack(basis)


def householder(r):
    d = len(r)
    q = torch.eye(d)
    for i in range(d - 1):
        x = r[i:, i]
        u = x - x.norm() * torch.eye(d - i)[0]
        u = torch.cat([torch.zeros(i), u / u.norm()])
        reflection = torch.eye(d) - 2 * torch.outer(u, u)
        r, q = reflection @ r, q @ reflection.T
    return q


def loewdin(r):
    return torch.from_numpy(polar(r.detach().cpu().numpy())[0]).to(r)


@pytest.mark.parametrize('d', SIZES)
@pytest.mark.parametrize('name', CONSTRAINED)
def test_the_maps(name, d):
    r = torch.randn(d, d)
    q = MAPS[name].q(r)
    assert_close(q, globals()[name](r))
    assert_close(q.T @ q, torch.eye(d))
    if name == 'householder':
        assert_close(torch.linalg.det(q), torch.tensor((-1.)**(d - 1)))


@pytest.mark.parametrize('d', [384, 576, 1152])
def test_reflections_at_the_size_of_real_layers(d):
    """In fp32 the determinant itself underflows on the way."""
    q = MAPS['householder'].q(torch.randn(d, d, dtype=torch.float32))
    assert_close(q.T @ q, torch.eye(d).float(), atol=1e-5)
    sign, log = torch.linalg.slogdet(q.double())
    assert sign == (-1)**(d - 1) and abs(log) < 1e-3


def test_cayley_is_that_of_torch():
    r = torch.randn(6, 6)
    holder = nn.Linear(6, 6, bias=False)
    parametrizations.orthogonal(holder, orthogonal_map='cayley',
                                use_trivialization=False)
    with torch.no_grad():
        holder.parametrizations.weight.original.copy_(-2 * r.T)
    assert_close(holder.weight, MAPS['cayley'].q(r))


@pytest.mark.parametrize('name', CONSTRAINED)
def test_gradients(name):
    assert torch.autograd.gradcheck(MAPS[name].q, torch.randn(
        5, 5, requires_grad=True))


def test_gradients_where_singular_values_are_equal():
    """There the SVD's own gradient divides by nothing."""
    r = torch.linalg.qr(torch.randn(5, 5))[0].requires_grad_()
    assert torch.autograd.gradcheck(MAPS['loewdin'].q, r)


def published_descent(q, m, grad, lr):
    m = 0.9 * m - grad
    half = m @ q.T - 0.5 * q @ q.T @ m @ q.T
    omega = half - half.T
    a = min(lr, 1 / (omega.norm().item() + 1e-8))
    y0 = q + a * omega @ q
    y1 = q + a / 2 * omega @ (q + y0)
    return q + a / 2 * omega @ (q + y1), omega @ q


@pytest.mark.parametrize('lr', [1e-3, 10.])
def test_a_step_of_gradient_descent(lr):
    """The published one, brought back to the nearest orthogonal matrix."""
    q = torch.linalg.qr(torch.randn(16, 16))[0]
    m, grad = torch.randn(2, 16, 16)
    expected, momentum = published_descent(q, m, grad, lr)
    found, found_momentum = descend(q, m, grad, lr)
    assert_close(found_momentum, momentum)
    drift = (expected.T @ expected - torch.eye(16)).abs().max().item()
    assert_close(found, loewdin(expected), atol=drift**2 * 16 + 1e-12)


def test_gradient_descent_does_not_drift():
    d, target = 64, torch.randn(64, 64)
    states = [(torch.eye(d), torch.zeros(d, d)) for _ in range(2)]
    for _ in range(1000):
        states = [step(q, m, q - target, 0.02) for step, (q, m) in
                  zip((published_descent, descend), states)]
    drifts = [(q.T @ q - torch.eye(d)).abs().max() for q, _ in states]
    assert drifts[0] > 1e-4 and drifts[1] < 1e-9


# Training


def neurons(weight):
    """As the paper has them, as columns."""
    return weight.flatten(1).T


def network():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 2),
                         nn.Tanh(), nn.Conv2d(4, 4, 1), nn.Flatten(),
                         nn.Linear(16, 2))


def weights(model):
    return {name: m.weight for name, m in model.named_modules()
            if isinstance(m, nn.Conv2d)}


def gradients_of(model, seed, accumulate=1):
    generator = torch.Generator('cpu').manual_seed(seed)
    for _ in range(accumulate):
        x = torch.randn(4, 3, 5, 5, generator=generator, device='cpu')
        x = x.to(model[-1].weight)
        loss = (model(x) - x.mean((1, 2, 3))[:, None]).square().mean()
        if hasattr(model, 'penalty'):
            loss = loss + model.penalty() / accumulate
        loss.backward()


def train(model, optimizer, updates, accumulate=1, seed=7):
    for update in range(updates):
        gradients_of(model, seed + update, accumulate)
        optimizer.step()
        optimizer.zero_grad()


def sgd(params, **keys):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=5e-4,
                           **keys)


class Turned(nn.Module):
    """W = Q(R) W0, by the parametrization of torch and the slow maps."""

    def __init__(self, base, shape, name):
        super().__init__()
        self.base, self.shape, self.name = base, shape, name

    def forward(self, r):
        map = r if self.name == 'regulariser' else globals()[self.name](r)
        return (self.base @ map.T).view(self.shape)

    def right_inverse(self, weight):
        return torch.eye(self.base.shape[1])


def parametrized(model, training, name):
    """The same R and W0, in a model whose weights are computed each time."""
    model = copy.deepcopy(model)
    found = []
    for key, layer in training.layers.items():
        conv = model.get_submodule(key)
        parametrize.register_parametrization(
            conv, 'weight', Turned(layer.base, conv.weight.shape, name),
            unsafe=True)
        found.append(conv.parametrizations.weight.original)
        found[-1].data.copy_(layer.r)
    if name == 'regulariser':
        model.penalty = lambda: 0.1 * sum(
            (r @ r.T - torch.eye(len(r))).square().sum().sqrt() for r in found)
    return model


@pytest.fixture
def refined(request, monkeypatch):
    """Whether inverses are kept, as on a GPU."""
    monkeypatch.setattr(Cayley, 'refines', staticmethod(
        lambda r: request.param))


@pytest.mark.parametrize('refined', [False, True], indirect=True)
def test_both_ways_to_divide_are_exact(refined):
    """Twenty updates of narrow and wide layers, against autograd."""
    model = nn.Sequential(nn.Conv2d(3, 12, 2), nn.Tanh(), nn.Conv2d(12, 5, 1),
                          nn.Tanh(), nn.Conv2d(5, 30, 1), nn.Conv2d(
                              30, 4, 4, bias=False), nn.Flatten(),
                          nn.Linear(4, 2))
    optimizer = sgd(model.parameters())
    training = OrthogonalTraining(optimizer, weights(model), start='identity')
    reference = parametrized(model, training, 'cayley')
    train(model, optimizer, 20)
    train(reference, sgd(reference.parameters()), 20)
    for key, layer in training.layers.items():
        assert_close(layer.weight, reference.get_submodule(key).weight, 1e-10)
    assert max(training.errors().values()) < 1e-13


@pytest.mark.parametrize('residual, steps', [
    (1., 0), (float('inf'), 0), (float('nan'), 0), (0.1, 0),
    (0.09, 5), (1e-4, 3), (2e-5, 2), (0., 2)])
def test_how_often_an_inverse_is_refined(residual, steps):
    """0.36^16, (4e-4)^4 and (8e-5)^2 are below 1.2e-7; their roots are not."""
    assert newton_steps(residual, torch.finfo(torch.float32).eps) == steps


def test_equal_neurons_have_no_refined_start():
    with pytest.raises(ValueError, match='two neurons are equal'):
        minimise_energy(torch.ones(3, 4), 10)


@pytest.mark.parametrize('rate', [1e-3, 0.1, 3.])
@pytest.mark.parametrize('refined', [True], indirect=True)
def test_a_refined_inverse_is_as_good_at_any_rate(refined, rate):
    """In fp32, where R moves little, and where it must be inverted anew."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(64, 64, 3, 3, dtype=torch.float32))
    optimizer = torch.optim.SGD([weight], lr=rate, momentum=0.9)
    training = OrthogonalTraining(optimizer, {'conv': weight})
    start, steps = weight.detach().flatten(1), []
    for _ in range(12):
        weight.grad = torch.randn_like(weight) / 100
        optimizer.step()
        training.check()
        steps.append(newton_steps(training.stacks[0].residual, 1e-7))
        assert training.errors()['conv'] < 5e-6
        end = weight.detach().flatten(1)
        torch.testing.assert_close(end @ end.T, start @ start.T, rtol=1e-5,
                                   atol=1e-2)
    assert min(steps[2:]) > 1 if rate < 1 else 0 in steps


class Count(TorchDispatchMode):

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('refined', [False, True], indirect=True)
def test_operations_and_waits_of_a_resnet50(refined):
    """53 layers of 8 sizes, by 20 products each way."""
    from torchvision.models import resnet50
    model = resnet50().float()
    convs = {name: m.weight for name, m in model.named_modules()
             if isinstance(m, nn.Conv2d)}
    drawn = [name for name, weight in convs.items()
             if weight[0].numel() > 1152]
    counts = []
    for names in ({}, convs):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9,
                                    foreach=True)
        if names:
            OrthogonalTraining(optimizer, convs, stochastic=drawn,
                               start='identity')
        for _ in range(2):
            for param in model.parameters():
                param.grad = torch.ones_like(param) * 1e-4
            with Count() as count:
                optimizer.step()
        counts.append(count.seen)
    beside, found = (sum(seen.values()) for seen in counts)
    assert found - beside <= 150
    assert not {'item', '_local_scalar_dense', 'equal', 'is_nonzero'
                } & counts[1].keys()


@pytest.mark.parametrize('accumulate', [1, 2])
@pytest.mark.parametrize('name', ['cayley', 'gram_schmidt', 'householder',
                                  'regulariser'])
def test_it_trains_as_a_parametrization_does(name, accumulate):
    """R is what the optimizer moves; the chain rule is exact."""
    model = network()
    optimizer = sgd(model.parameters())
    training = OrthogonalTraining(optimizer, weights(model), name)
    reference = parametrized(model, training, name)
    train(model, optimizer, 5, accumulate)
    train(reference, sgd(reference.parameters()), 5, accumulate)
    for key, layer in training.layers.items():
        conv = reference.get_submodule(key)
        assert_close(layer.r, conv.parametrizations.weight.original, 1e-10)
        assert_close(layer.weight, conv.weight, 1e-10)
    assert_close(model[-1].weight, reference[-1].weight, 1e-10)


def test_gradient_descent_trains_q_at_its_own_rate():
    """0.02, and a fifth where the others' falls to a tenth; decay is theirs,
    and a tenth."""
    model = network()
    optimizer = sgd(model.parameters())
    training = OrthogonalTraining(optimizer, weights(model),
                                  'gradient_descent')
    reference = parametrized(model, training, 'regulariser')
    del reference.penalty
    qs = [module.parametrizations.weight.original for module in reference
          if isinstance(module, nn.Conv2d)]
    momenta = [torch.zeros_like(q) for q in qs]
    other = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9,
                            weight_decay=5e-5)
    for update, (lr, own_lr) in enumerate(
            [(0.1, 0.02), (0.1, 0.02), (0.01, 0.004), (0.001, 0.0008)]):
        optimizer.param_groups[0]['lr'] = other.param_groups[0]['lr'] = lr
        train(model, optimizer, 1, seed=update)
        gradients_of(reference, seed=update)
        for i, q in enumerate(qs):
            moved, momenta[i] = published_descent(q.detach(), momenta[i],
                                                  q.grad, own_lr)
            q.data.copy_(loewdin(moved))
            q.grad = None
        other.step()
        other.zero_grad()
    for layer, q in zip(training.layers.values(), qs, strict=True):
        assert_close(layer.r, q, 1e-7)
    assert_close(model[-1].weight, reference[-1].weight, 1e-7)


def test_gradient_descent_keeps_still_at_rate_zero():
    model = network()
    still, *others = model.parameters()
    optimizer = sgd([dict(params=[still], lr=0.), dict(params=others)])
    training = OrthogonalTraining(optimizer, weights(model),
                                  'gradient_descent')
    before = copy.deepcopy(model)
    train(model, optimizer, 5)
    assert_close(training.layers['0'].r, torch.eye(27))
    assert_close(model[0].weight, before[0].weight)
    assert not torch.equal(model[2].weight, before[2].weight)


@pytest.mark.parametrize('name', MAPS)
def test_energy_stays(name, device):
    """And the angles between the neurons, while the weights move."""
    model = network()
    optimizer = sgd(model.parameters())
    training = OrthogonalTraining(optimizer, weights(model), name)
    before = [w.clone() for w in weights(model).values()]
    train(model, optimizer, 10)
    for old, new in zip(before, weights(model).values()):
        assert (new - old).abs().max() > (1e-3 if device == 'cpu' else 1e-4)
        same = abs(hyperspherical_energy(old) / hyperspherical_energy(new) - 1)
        assert same < 1e-9 or name == 'regulariser'
    errors = training.errors()
    assert set(errors) == {'0', '2', '4'}
    assert max(errors.values()) < 1e-9 or name == 'regulariser'


def test_energy_is_a_mean_over_pairs():
    weight = torch.randn(4, 2, 3, 3)
    unit = [w.flatten() / w.norm() for w in weight]
    pairs = [1 / (unit[i] - unit[j]).norm().item() for i in range(4)
             for j in range(4) if i != j]
    assert abs(hyperspherical_energy(weight) - sum(pairs) / 12) < 1e-12


@pytest.mark.parametrize('c_out, d, energy', [
    (2, 2, 1 / 2), (3, 2, 3**-0.5), (4, 3, (8 / 3)**-0.5),
    (4, 27, (8 / 3)**-0.5),
    # The octahedron: 12 pairs at sqrt(2), 3 at 2.
    (6, 3, (12 / 2**0.5 + 3 / 2) / 15)])
def test_the_smallest_energy_is_that_of_regular_bodies(c_out, d, energy):
    weight = torch.randn(c_out, d, 1, 1)
    minimise_energy(weight, 300)
    assert abs(hyperspherical_energy(weight) - energy) < 1e-6
    assert_close(weight.flatten(1).norm(dim=1), torch.ones(c_out))


def test_a_real_layer_comes_near_the_simplex():
    """128 neurons of 576 numbers fit: all at sqrt(2 128 / 127)."""
    weight = torch.randn(128, 64, 3, 3, dtype=torch.float32)
    before, least = hyperspherical_energy(weight), (256 / 127)**-0.5
    minimise_energy(weight, 200)
    assert hyperspherical_energy(weight) - least < (before - least) / 100


@pytest.mark.parametrize('name', CONSTRAINED + ['regulariser'])
def test_stochastic_layers(name):
    """By a loop: draw rows, learn their map from the identity, go on."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = OrthogonalTraining(optimizer, weights(model), name, ['2'],
                                  period=3, seed=5)
    layer, = [found for key, found in training.layers.items() if key == '2']
    plain = copy.deepcopy(model)  # it shows the gradients
    generator = torch.Generator('cpu').manual_seed(5)
    torch.randn(27, 27, generator=generator, device='cpu')  # the first's R
    for update in range(9):
        if update % 3 == 0:
            rows = torch.randperm(20, generator=generator, device='cpu')[:5]
            if not update:
                torch.randn(4, 4, generator=generator, device='cpu')
            r = torch.eye(5) * (name != 'cayley')
            map = MAPS[name].q
            base = torch.linalg.solve(
                map(r), neurons(model[2].weight)[rows].detach())
        plain.load_state_dict(model.state_dict())
        plain.zero_grad()
        gradients_of(plain, update)
        r = r.detach().requires_grad_()
        merged = map(r) @ base
        grad = neurons(plain[2].weight.grad)[rows]
        loss = (merged * grad).sum()
        if name == 'regulariser':
            loss = loss + 0.1 * (r @ r.T - torch.eye(5)).norm()
        loss.backward()
        r = r.detach() - 0.1 * r.grad
        expected = neurons(model[2].weight).detach().clone()
        expected[rows] = map(r) @ base
        train(model, optimizer, 1, seed=update)
        assert_close(neurons(model[2].weight), expected)
        if update % 3 < 2:  # afterwards others are drawn
            assert layer.rows.tolist() == rows.tolist()


@pytest.mark.parametrize('name', MAPS)
def test_who_writes_the_weights_sets_w0(name):
    """An initialisation, a checkpoint, an average that is written back."""
    model = network()
    optimizer = sgd(model.parameters())
    training = OrthogonalTraining(optimizer, weights(model), name)
    train(model, optimizer, 2)
    layer = training.layers['2']
    given = torch.randn_like(layer.weight)
    with torch.no_grad():
        layer.weight.copy_(given)
    optimizer.param_groups[0]['lr'] = 1e-9  # so that Q stays
    train(model, optimizer, 1)
    assert_close(layer.weight, given, 1e-5)
    q = MAPS[name].q(layer.r)
    assert_close(layer.base @ q.T, layer.weight.flatten(1))


@pytest.mark.parametrize('refined, name', [
    *((False, name) for name in MAPS), (True, 'cayley')],
    indirect=['refined'])
@pytest.mark.parametrize('stochastic', [(), ('2', )])
@pytest.mark.parametrize('at', [1, 3, 4])
def test_a_resumed_training_is_the_same(refined, name, stochastic, at):
    def start():
        torch.manual_seed(3)
        model = network()
        optimizer = sgd(model.parameters())
        return model, optimizer, OrthogonalTraining(
            optimizer, weights(model), name, stochastic, period=3)

    model, optimizer, training = start()
    train(model, optimizer, at)
    saved = copy.deepcopy([one.state_dict()
                           for one in (model, optimizer, training)])
    train(model, optimizer, 5, seed=8)
    again = start()
    for one, state in zip(again, saved):
        one.load_state_dict(state)
    train(*again[:2], 5, seed=8)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again[0].state_dict()[key]), key
    for key, layer in training.layers.items():
        assert torch.equal(layer.r, again[2].layers[key].r)
        assert torch.equal(layer.base, again[2].layers[key].base)


def test_another_map_is_not_resumed():
    model = network()
    one = OrthogonalTraining(sgd(model.parameters()), weights(model))
    other = OrthogonalTraining(sgd(model.parameters()), weights(model),
                               'loewdin', stochastic=['2'])
    with pytest.raises(ValueError, match="by 'cayley', and this run's by "
                       "'loewdin' of other sizes in 2: resume with"):
        other.load_state_dict(one.state_dict())


@pytest.mark.parametrize('keys, message', [
    (dict(map='caley'), "map='caley' is not known: use one of cayley,"),
    (dict(share=2), 'share=2 is not possible'),
    (dict(period=0), 'period=0 is not possible'),
    (dict(start='zero'), "start='zero' is not known"),
])
def test_bad_settings(keys, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        OrthogonalTraining(sgd(model.parameters()), weights(model), **keys)


def test_a_fused_optimizer_is_refused():
    model = network()
    with pytest.raises(ValueError, match='leave out fused=True'):
        OrthogonalTraining(sgd(model.parameters(), fused=True),
                           weights(model))


@pytest.mark.parametrize('optimizer', [
    sgd, lambda params: torch.optim.LBFGS(params, lr=0.1)])
def test_a_closure_is_refused(optimizer):
    """It would compute the gradients after they are needed."""
    model = network()
    optimizer = optimizer(model.parameters())
    OrthogonalTraining(optimizer, weights(model))
    before = copy.deepcopy(model.state_dict())
    for call in (optimizer.step,
                 lambda closure: optimizer.step(closure=closure)):
        with pytest.raises(ValueError, match='call closure.. first'):
            call(lambda: gradients_of(model, 0))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize('name', MAPS)
@pytest.mark.parametrize('saving', [False, True])
def test_a_gradient_that_is_not_finite_is_said(name, saving):
    """At once; by 'cayley' at the next update, or before it is saved."""
    model = network()
    optimizer = sgd(model.parameters())
    training = OrthogonalTraining(optimizer, weights(model), name)
    before = copy.deepcopy(model.state_dict())
    gradients_of(model, 0)
    model[2].weight.grad[1] = float('nan')
    with pytest.raises(ValueError, match='2: the gradient of its orthogonal'):
        optimizer.step()
        if saving:
            training.state_dict()
        optimizer.step()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) or name == 'cayley'


def test_a_singular_matrix_is_said():
    model = network()
    optimizer = sgd(model.parameters())
    training = OrthogonalTraining(optimizer, weights(model), 'loewdin')
    training.layers['2'].r.zero_()
    training.layers['2'].stack.update()
    with pytest.raises(ValueError, match='2: the gradient of its orthogonal'):
        train(model, optimizer, 1)


def test_a_weight_of_zeros_is_refused():
    model = network()
    nn.init.zeros_(model[2].weight)
    with pytest.raises(ValueError, match='2: a weight of zeros'):
        OrthogonalTraining(sgd(model.parameters()), weights(model))


def test_an_orthogonal_convolution_waits_for_its_training():
    conv = OrthogonalConv2d(64, 64, 3)
    assert abs(conv.weight.std() / (2 / 576)**0.5 - 1) < 0.02
    conv.eval()(torch.zeros(1, 64, 5, 5))
    with pytest.raises(ValueError, match='mmpsw.OrthogonalHook'):
        conv.train()(torch.zeros(1, 64, 5, 5))
    conv.rotated = True
    conv(torch.zeros(1, 64, 5, 5))

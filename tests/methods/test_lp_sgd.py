"""LpSGD against a slow reference, and by hand."""
import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmpsw.methods.averaging import PSWA, PeriodicResampler
from mmpsw.methods.lp_sgd import LpSGD

SHAPES = [(5, 3, 3, 3), (4, 7), (6, 2, 4)]
P = [1.05, 1.07, 1.2, 1.5, 2.]


def weights(seed=0, dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator('cpu').manual_seed(seed)
    return [nn.Parameter(torch.randn(
        shape, generator=generator, dtype=dtype, device='cpu').div(20).to(
            torch.get_default_device())) for shape in shapes]


def gradients(step, like, scale=1e-3):
    generator = torch.Generator('cpu').manual_seed(1000 + step)
    return [torch.randn(w.shape, generator=generator, dtype=torch.float64,
                        device='cpu').mul(scale).to(w) for w in like]


def run(optimizer, params, steps, first=0):
    for step in range(first, first + steps):
        for w, grad in zip(params, gradients(step, params)):
            w.grad = grad
        optimizer.step()


def p_norms(w, p):
    return w.detach().double().abs().pow(p).flatten(1).sum(1).pow(1 / p)


def reference(start, p, lr, momentum, nesterov, steps):
    """One filter after the other, by the paper's equations."""
    q = p / (p - 1)
    norm = lambda x, order: (np.abs(x)**order).sum()**(1 / order)  # noqa: E731
    out = [w.detach().cpu().numpy().copy() for w in start]
    filters = [(one, tensor, f) for one, tensor in enumerate(out)
               for f in range(len(tensor))]
    v, buf = {}, {}
    for one, tensor, f in filters:
        w = tensor[f] / norm(tensor[f], p)
        v[one, f], buf[one, f] = np.sign(w) * np.abs(w)**(p - 1), 0.
    for step in range(steps):
        grads = gradients(step, start)
        for one, tensor, f in filters:
            g = grads[one][f].cpu().numpy()
            buf[one, f] = momentum * buf[one, f] + g
            g = g + momentum * buf[one, f] if nesterov else buf[one, f]
            new = (1 - lr) * v[one, f] - lr * g / norm(g, q)
            v[one, f] = new / norm(new, q)
            tensor[f] = np.sign(v[one, f]) * np.abs(v[one, f])**(1 / (p - 1))
    return out


def test_a_step_by_hand():
    """p = 1.5, q = 3: v = (1, 0), ghat = (0, 1), and w = sign(v) v^2.

    (v - ghat) / 2 = (1/2, -1/2) has the norm (1/8 + 1/8)^(1/3) = 2^(-2/3).
    """
    w = nn.Parameter(torch.tensor([[2., 0.]], dtype=torch.float64))
    optimizer = LpSGD([w], lr=0.5, p=1.5)
    assert optimizer.project()[w].tolist() == [0.5]
    assert w.tolist() == [[1, 0]]
    w.grad = torch.tensor([[0., 7e-9]], dtype=torch.float64)
    optimizer.step()
    v = optimizer.state[w]['v']
    torch.testing.assert_close(v, torch.tensor([[1., -1.]]).double() / 2**(
        1 / 3))
    torch.testing.assert_close(w.detach(), torch.tensor(
        [[1., -1.]]).double() / 2**(2 / 3))


@pytest.mark.parametrize('p', P)
@pytest.mark.parametrize('momentum, nesterov', [
    (0., False), (0.9, False), (0.9, True)])
def test_it_is_the_slow_reference(p, momentum, nesterov):
    params = weights()
    expected = reference(params, p, 0.05, momentum, nesterov, 6)
    optimizer = LpSGD(params, 0.05, p, momentum, nesterov)
    optimizer.project()
    run(optimizer, params, 6)
    for w, slow in zip(params, expected):
        np.testing.assert_allclose(w.detach().cpu().numpy(), slow, rtol=1e-9,
                                   atol=1e-30)


@pytest.mark.parametrize('p', P)
@pytest.mark.parametrize('dtype, bound', [
    (torch.float64, 1e-13), (torch.float32, 5e-6)])
def test_every_filter_has_norm_one_after_every_update(p, dtype, bound):
    params = weights(dtype=dtype, shapes=[*SHAPES, (16, 512, 3, 3)])
    optimizer = LpSGD(params, 0.02, p, 0.9, True)
    optimizer.project()
    for step in range(8):
        for w in params:
            assert (p_norms(w, p) - 1).abs().max() < bound
        run(optimizer, params, 1, step)


@pytest.mark.parametrize('p', P)
def test_the_gradients_size_does_not_matter(p):
    """Not even in fp32, where 1e-6 has no 21st power."""
    ends = []
    for scale in (1., 2.**-20):
        params = weights(dtype=torch.float32)
        optimizer = LpSGD(params, 0.1, p)
        for w, grad in zip(params, gradients(0, params)):
            w.grad = grad * scale
        optimizer.step()
        ends.append(params)
    for one, other in zip(*ends):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=1e-6)


def test_all_in_one_group_is_one_after_the_other():
    together, alone = weights(dtype=torch.float32), weights(
        dtype=torch.float32)
    run(LpSGD(together, 0.05, 1.07, 0.9, True), together, 5)
    run(LpSGD([dict(params=[w]) for w in alone], 0.05, 1.07, 0.9, True),
        alone, 5)
    for one, other in zip(together, alone):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize('keys', [
    dict(), dict(momentum=0.9), dict(momentum=0.9, nesterov=True),
    dict(momentum=0.9, weight_decay=0.01)])
def test_without_p_it_is_torchs_sgd(keys):
    mine, torchs = weights(dtype=torch.float32), weights(dtype=torch.float32)
    run(LpSGD(mine, lr=0.1, **keys), mine, 5)
    run(torch.optim.SGD(torchs, lr=0.1, foreach=True, **keys), torchs, 5)
    for one, other in zip(mine, torchs):
        assert torch.equal(one, other)


def test_there_is_no_weight_decay_on_the_sphere():
    one, other = weights(), weights()
    run(LpSGD(one, 0.1, 1.5), one, 3)
    run(LpSGD(other, 0.1, 1.5, weight_decay=0.5), other, 3)
    assert all(map(torch.equal, one, other))


class Count(TorchDispatchMode):

    def __init__(self):
        super().__init__()
        self.operations = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        out = func(*args, **(kwargs or {}))
        if torch.is_tensor(out) and not any(
                out is one for one in (*args, *(kwargs or {}).values())):
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize('shapes', [
    [(2, 3, 3, 3)], [(200, 3, 3, 3)], [(4, 3, 3, 3), (6, 5)] * 30])
def test_operations_grow_with_nothing_and_memory_stays(shapes):
    """Two values of p, and what trains plainly, as in the configs."""
    params = weights(shapes=[*shapes * 2, *shapes])
    half = len(shapes)
    optimizer = LpSGD([dict(params=params[:half], p=1.2),
                       dict(params=params[half:2 * half], p=1.07),
                       dict(params=params[2 * half:])], 0.05,
                      momentum=0.9, nesterov=True)
    run(optimizer, params, 1)
    v = optimizer.state[params[0]]['v']
    places = params[0].data_ptr(), v.data_ptr()
    for w, grad in zip(params, gradients(1, params)):
        w.grad = grad
    with Count() as count:
        optimizer.step()
    assert count.operations <= 40
    # What is new has a number for each filter, and not for each weight.
    assert count.largest == sum(len(w) for w in params[:2 * half])
    assert optimizer.state[params[0]]['v'] is v
    assert places == (params[0].data_ptr(), v.data_ptr())


def test_a_weight_without_a_gradient_rests():
    """The others go on with the state that they had."""
    params, others = weights(), weights()
    optimizer, other = (LpSGD(w, 0.05, 1.2, 0.9) for w in (params, others))
    run(optimizer, params, 2)
    run(other, others, 2)
    for step in range(2, 5):
        for w, grad in zip(params, gradients(step, params)):
            w.grad = None if w is params[1] and step < 4 else grad
        before = params[1].detach().clone()
        optimizer.step()
        assert torch.equal(before, params[1]) == (step < 4)
        run(other, others, 1, step)
    for i in (0, 2):
        torch.testing.assert_close(params[i], others[i])


# Whoever writes w


def test_v_follows_from_a_filter_that_is_written():
    (w, ), p = weights(shapes=[(3, 8)]), 1.2
    optimizer = LpSGD([w], 0.05, p, 0.9)
    run(optimizer, [w], 3)
    written = torch.linspace(-1, 1, 8, dtype=torch.float64)
    twin = copy.deepcopy(optimizer)
    other = twin.param_groups[0]['params'][0]
    with torch.no_grad():
        w[1] = 5 * written
    other.grad = torch.ones_like(w)
    w.grad = torch.ones_like(w)
    optimizer.param_groups[0]['lr'] = twin.param_groups[0]['lr'] = 0.
    optimizer.step()
    twin.step()
    torch.testing.assert_close(
        w[1].detach(), written / (written.abs()**p).sum()**(1 / p))
    # The filters beside it go on as if nothing had been written.
    assert torch.equal(w[::2], other[::2])


def test_a_weight_that_is_zeroed_keeps_its_v():
    p = 1.2
    masked, free = (weights(shapes=[(3, 8)])[0] for _ in range(2))
    optimizers = [LpSGD([w], 0.05, p) for w in (masked, free)]
    for step in range(4):
        for optimizer, w in zip(optimizers, (masked, free)):
            run(optimizer, [w], 1, step)
            assert (p_norms(w, p) - 1).abs().max() < 1e-13
        with torch.no_grad():
            masked[:, :3] = 0
            masked[2] = 0
    run(optimizers[0], [masked], 1, 4)
    run(optimizers[1], [free], 1, 4)
    assert torch.equal(masked, free)


@pytest.mark.parametrize('write', [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(write):
    """Also where w was written after the last step, and v is behind."""
    params = weights(dtype=torch.float32)
    optimizer = LpSGD(params, 0.05, 1.07, 0.9, True)
    run(optimizer, params, 3)
    if write:
        with torch.no_grad():
            params[0].mul_(0.7).add_(0.01)
            params[1][:, 2] = 0
    file = io.BytesIO()
    torch.save([params, optimizer.state_dict()], file)
    file.seek(0)
    loaded, state = torch.load(file, weights_only=True)
    resumed = LpSGD(loaded, 0.05, 1.07, 0.9, True)
    resumed.load_state_dict(state)
    assert not resumed.project()
    with torch.no_grad():  # as a wrapper does that restores weights itself
        for w in loaded:
            w.copy_(w.clone())
    run(optimizer, params, 3, 3)
    run(resumed, loaded, 3, 3)
    for one, other in zip(params, loaded):
        assert torch.equal(one, other)


def test_beside_a_resampler():
    """After each period training goes on from the mean, on the sphere."""
    p, (w, ) = 1.3, weights(shapes=[(4, 9)])
    optimizer = LpSGD([w], 0.2, p, 0.9)
    resampler = PeriodicResampler(optimizer, PSWA(), period=3)
    samples = []
    for step in range(6):
        run(optimizer, [w], 1, step)
        samples.append(w.detach().clone())
        resampler.step()
    mean = torch.stack(samples[3:]).mean(0)
    torch.testing.assert_close(w.detach(), mean)
    assert (p_norms(w, p) < 0.999).all()
    optimizer.param_groups[0]['lr'] = 0.
    run(optimizer, [w], 1, 6)
    torch.testing.assert_close(w.detach(), mean / p_norms(mean, p)[:, None])


def test_a_filter_without_a_gradient_stays():
    (w, ) = weights(shapes=[(3, 8)])
    optimizer = LpSGD([w], 0.3, 1.07)
    optimizer.project()
    before = w.detach().clone()
    w.grad = torch.zeros_like(w)
    w.grad[1] = 1
    optimizer.step()
    torch.testing.assert_close(w[::2].detach(), before[::2])
    assert not torch.allclose(w[1], before[1])


def test_it_can_be_pickled():
    params = weights()
    optimizer = LpSGD(params, 0.1, 1.2, 0.9)
    run(optimizer, params, 2)
    other = pickle.loads(pickle.dumps(optimizer))
    copied = other.param_groups[0]['params']
    run(optimizer, params, 2, 2)
    run(other, copied, 2, 2)
    assert all(map(torch.equal, params, copied))


@pytest.mark.parametrize('keys, message', [
    (dict(p=1), 'p=1 is not possible'),
    (dict(p=0.5), 'p=0.5'),
    (dict(p='1.2'), "p='1.2' is not possible"),
    (dict(p=float('inf')), 'p=inf'),
    (dict(p=1.5, lr=1.), r'lr=1.0 .* \[0, 1\)'),
    (dict(lr=-1.), r'lr=-1.0 .* >= 0'),
    (dict(momentum=1.), 'momentum=1.0'),
    (dict(nesterov=True), 'nesterov=True'),
])
def test_bad_settings_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        LpSGD(weights(), **{'lr': 0.1, **keys})


def test_powers_that_overflow_in_fp32_are_refused():
    weight = nn.Parameter(torch.ones(2, 3))
    with pytest.raises(ValueError, match='p=1.02 is not possible in fp32'):
        LpSGD([weight], 0.1, 1.02)
    LpSGD([nn.Parameter(weight.double())], 0.1, 1.02)
    LpSGD([weight], 0.1, 1.03)


@pytest.mark.parametrize('weight', [
    torch.ones(3), torch.ones(2, 3, dtype=torch.float16),
    torch.ones(2, 3, dtype=torch.bfloat16)])
def test_what_cannot_lie_on_the_sphere_is_refused(weight):
    with pytest.raises(ValueError, match='cannot lie on the sphere'):
        LpSGD([nn.Parameter(weight)], 0.1, 1.5)


def test_a_zero_filter_and_sparse_gradients_are_refused():
    w = nn.Parameter(torch.ones(3, 4))
    with torch.no_grad():
        w[1] = 0
    with pytest.raises(ValueError, match='Filter 1 of conv.weight'):
        LpSGD([w], 0.1, 1.5).project({w: 'conv.weight'})
    w.grad = torch.ones(3, 4).to_sparse()
    with pytest.raises(ValueError, match='sparse gradients'):
        LpSGD([w], 0.1).step()

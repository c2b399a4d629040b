import copy
import io
import itertools

import pytest
import torch
from reference import Reference
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn

from mmpsw.methods.averaging import (
    PSWA,
    PSWM,
    PWALKS,
    PeriodicResampler,
    RunningMean,
)

TECHNIQUES = [
    PSWA(),
    PWALKS(last=2),
    PWALKS(last=0.6),
    PSWM(),
    PSWM(momentum='sample', last=2),
    PSWM(momentum='polyak'),
    PSWM(momentum='ahead', last=4),
]
WEIGHTINGS = ['uniform', 'linear']


def make(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(),
                         nn.Linear(8, 2)).to(dtype)


def train(model, optimizer, resampler, steps, start=0):
    """Deterministic data: the same batch for the same step."""
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 4, generator=generator, device='cpu').to(
            next(model.parameters()))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        resampler.step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3)


@pytest.mark.parametrize('technique', TECHNIQUES, ids=str)
@pytest.mark.parametrize('optimizer', [sgd, adamw])
@pytest.mark.parametrize('sample_prob', [1.0, 0.5])
@pytest.mark.parametrize('weighting', WEIGHTINGS)
def test_equals_the_reference(technique, optimizer, sample_prob, weighting):
    model = make(dtype=torch.float64)
    optim = optimizer(model)
    fast = PeriodicResampler(optim, technique, 5, sample_prob=sample_prob,
                             seed=3, weighting=weighting,
                             buffers=model.buffers(),
                             warn=lambda message: None)

    slow = make(dtype=torch.float64)
    slow_optim = optimizer(slow)
    generator = torch.Generator().manual_seed(3)

    def draw():
        return sample_prob == 1 or torch.rand(
            (), generator=generator, dtype=torch.float64,
            device='cpu') < sample_prob

    reference = Reference(5, technique.window(5),
                          getattr(technique, 'momentum', None), draw,
                          weighting, buffers=2)

    class Obvious:

        def step(self):
            tensors = [*slow.parameters()] + [
                b for b in slow.buffers() if b.is_floating_point()
            ]
            m = reference.step(tensors)
            if m is not None:
                for tensor, value in zip(tensors, m):
                    tensor.data = value.clone()

    for start in range(0, 17):
        train(model, optim, fast, 1, start)
        train(slow, slow_optim, Obvious(), 1, start)
        for a, b in zip(model.state_dict().values(),
                        slow.state_dict().values()):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_lookahead():
    """PSWM(momentum = 1 - alpha, last=1) is Lookahead(k, alpha).

    Against the public rule of Zhang et al. 2019, algorithm 1: the fast
    weights run k updates, then ``slow += alpha * (fast - slow)`` and
    ``fast = slow``. The slow weights start where PSWM's first mean is.
    """
    model, k, alpha = make(), 4, 0.3
    optim = sgd(model)
    resampler = PeriodicResampler(
        optim, PSWM(momentum=1 - alpha, last=1), period=k)
    other = make()
    other_optim = sgd(other)

    class Lookahead:
        count, slow = 0, None

        @torch.no_grad()
        def step(self):
            self.count += 1
            if self.count % k:
                return
            if self.slow is None:
                self.slow = [p.clone() for p in other.parameters()]
            for slow, fast in zip(self.slow, other.parameters()):
                slow.add_(fast - slow, alpha=alpha)
                fast.copy_(slow)

    train(model, optim, resampler, 20)
    train(other, other_optim, Lookahead(), 20)
    for a, b in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_pswa_never_written_back_is_swa():
    model = make()
    optim = sgd(model)
    resampler = PeriodicResampler(
        optim, PSWA(), 10, write_back=False, buffers=model.buffers())
    swa = AveragedModel(model, avg_fn=get_swa_avg_fn(), use_buffers=True)

    class Both:

        def step(self):
            resampler.step()
            swa.update_parameters(model)

    train(model, optim, Both(), 10)
    expected = [*swa.module.parameters(), *swa.module.buffers()]
    expected = [t for t in expected if t.is_floating_point()]
    for a, b in zip(resampler.average, expected, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('technique, write_back', [
    (PSWA(), True), (PSWA(), False), (PWALKS(last=3), True),
    (PSWM(momentum='ahead'), True)])
def test_the_average_so_far_is_shown(technique, write_back):
    """By hand: the mean of what was sampled since the window began."""
    w = nn.Parameter(torch.zeros(1))
    resampler = PeriodicResampler(torch.optim.SGD([w], lr=0.), technique, 4,
                                  write_back=write_back, evaluate='average')
    samples, first, finished = [], 4 - technique.window(4), None
    for step in range(12):
        w.data += step**2 + 1
        samples = ([] if step % 4 == 0 else samples)
        if step % 4 >= first:
            samples.append(w.item())
        done = resampler.step()
        live = w.item()
        if samples:
            expected = sum(samples) / len(samples)
        elif not write_back and finished is not None:
            expected = finished
        else:
            expected = live
        finished = expected if done is not None else finished
        with resampler.averaged():
            assert w.item() == pytest.approx(expected, rel=1e-6), step
        assert w.item() == live


def test_control_leaves_the_training_alone():
    model, baseline = make(), make()
    optim, other = sgd(model), sgd(baseline)
    resampler = PeriodicResampler(
        optim, PSWA(), 4, write_back=False, buffers=model.buffers())

    class Nothing:

        def step(self):
            pass

    train(model, optim, resampler, 10)
    train(baseline, other, Nothing(), 10)
    equal(model, baseline)
    with pytest.raises(KeyError), resampler.averaged():
        assert not torch.equal(model[0].weight, baseline[0].weight)
        torch.testing.assert_close(model[0].weight, resampler.average[0])
        raise KeyError('validation failed')
    equal(model, baseline)


def equal(model, other):
    for (name, a), b in zip(model.state_dict().items(),
                            other.state_dict().values()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize('technique', TECHNIQUES, ids=str)
@pytest.mark.parametrize('optimizer', [sgd, adamw])
@pytest.mark.parametrize('interrupted', range(0, 12))
@pytest.mark.parametrize('write_back', [True, False])
def test_resume_is_exact(technique, optimizer, interrupted, write_back):
    """At every phase of a period of 5, in the 1st, 2nd and 3rd period."""
    if technique.looks_ahead and not write_back:
        return

    def build():
        model = make()
        optim = optimizer(model)
        return model, optim, PeriodicResampler(
            optim, technique, 5, sample_prob=0.7,
            weighting=WEIGHTINGS[interrupted % 2], buffers=model.buffers(),
            write_back=write_back,
            evaluate=['resampled', 'average'][interrupted // 2 % 2],
            warn=lambda message: None)

    whole = build()
    train(*whole, 17)

    first = build()
    train(*first, interrupted)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = build()
    for part, state in zip(second, torch.load(file, weights_only=True)):
        part.load_state_dict(state)
    train(*second, 17 - interrupted, start=interrupted)
    equal(whole[0], second[0])
    for a, b in zip(whole[2].average or [], second[2].average or []):
        assert torch.equal(a, b)


@pytest.mark.parametrize('part', ['iteration', 'samples', 'generator', 'mean'])
def test_the_resume_test_can_fail(part):
    """Without one part of the state the weights differ."""
    whole, broken = make(), make()
    optims = sgd(whole), sgd(broken)
    resamplers = [
        PeriodicResampler(optim, PSWA(), 5, sample_prob=0.5)
        for optim in optims
    ]
    train(whole, optims[0], resamplers[0], 8)
    train(broken, optims[1], resamplers[1], 8)
    state = copy.deepcopy(resamplers[1].state_dict())
    fresh = PeriodicResampler(optims[1], PSWA(), 5, sample_prob=0.5)
    if part == 'mean':
        spoilt = {k: v + 1 for k, v in state['mean'].items()}
    elif part == 'samples':
        spoilt = state['samples'] + 1
    else:
        spoilt = fresh.state_dict()[part]
    fresh.load_state_dict({**state, part: spoilt})
    train(whole, optims[0], resamplers[0], 6, start=8)
    train(broken, optims[1], fresh, 6, start=8)
    assert not torch.equal(whole[0].weight, broken[0].weight)


def test_half_precision_accumulates_in_fp32():
    """A bf16 mean would stand still after a few hundred samples."""
    w = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optim = torch.optim.SGD([w], lr=0.)
    resampler = PeriodicResampler(optim, PSWA(), 1001)
    for i in range(1000):
        w.data.fill_(float(i % 2))
        resampler.step()
    assert resampler._running.mean[0].dtype == torch.float32
    assert resampler._running.mean[0].item() == pytest.approx(0.5, abs=1e-6)
    w.data.fill_(0.)
    resampler.step()
    assert w.dtype == torch.bfloat16 and w.item() == 0.5


@pytest.mark.parametrize(
    'dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64,
              torch.complex64, torch.complex128])
def test_a_mean_of_equal_weights_is_those_weights(dtype):
    w = nn.Parameter(torch.randn(33, dtype=torch.complex128).to(dtype)
                     if dtype.is_complex else torch.randn(33).to(dtype))
    before = w.detach().clone()
    resampler = PeriodicResampler(
        torch.optim.SGD([w], lr=0.), PSWM(momentum=0.3), 7)
    for _ in range(21):
        resampler.step()
    assert torch.equal(w, before)
    assert resampler.newest.shift == 0


def test_the_mean_is_no_view_of_the_weights():
    w = nn.Parameter(torch.ones(3))
    mean = RunningMean([w])
    mean.update()
    w.data.fill_(5.)
    assert mean.mean[0].tolist() == [1, 1, 1]


def test_frozen_shared_and_several_groups():
    shared = nn.Parameter(torch.tensor([1.]))
    frozen = nn.Parameter(torch.tensor([1.]), requires_grad=False)
    unused = nn.Parameter(torch.tensor([1.]))  # never gets a gradient
    module = nn.Module()
    module.a, module.b = shared, shared
    module.register_buffer('steps', torch.tensor(0))
    module.register_buffer('stats', torch.tensor(0.))
    optim = torch.optim.SGD([dict(params=[frozen, shared]),
                             dict(params=[unused])], lr=1.)
    optim.param_groups.append(dict(optim.param_groups[0], params=[]))
    resampler = PeriodicResampler(optim, PSWA(), 2, buffers=module.buffers())
    assert len(resampler.tensors) == 3
    shared.grad = torch.tensor([-1.])
    for _ in (1, 2):
        frozen.data += 1
        module.steps += 1
        module.stats += 1
        optim.step()
        resampler.step()
    assert shared.item() == 2.5  # (2 + 3) / 2
    assert frozen.item() == 3 and unused.item() == 1
    assert module.steps.item() == 2 and module.stats.item() == 1.5
    assert module.a is module.b


def test_parameters_that_are_unfrozen_are_followed():
    a = nn.Parameter(torch.zeros(1))
    b = nn.Parameter(torch.zeros(1), requires_grad=False)
    messages = []
    resampler = PeriodicResampler(
        torch.optim.SGD([a, b], lr=0.), PSWM(), 2, warn=messages.append)

    def period():
        for _ in range(2):
            a.data += 1
            b.data += 1
            resampler.step()

    period()
    assert (a.item(), b.item()) == (1.5, 2)
    b.requires_grad_(True)
    period()  # a: 2.5, 3.5; b: 3, 4, both without a previous mean
    assert (a.item(), b.item()) == (3, 3.5)
    assert len(messages) == 1 and 'anew' in messages[0]


@pytest.mark.parametrize('optimizer', [
    sgd, adamw, lambda m: torch.optim.Adagrad(
        m.parameters(), initial_accumulator_value=0.5),
    lambda m: torch.optim.NAdam(m.parameters()),
    lambda m: torch.optim.Rprop(m.parameters())
])
def test_reset_returns_the_optimizer_to_its_first_state(optimizer):
    """The update after a reset is that of a new optimizer."""
    model = make()
    optim = optimizer(model)
    train(model, optim,
          PeriodicResampler(optim, PSWA(), 3, optimizer_state='reset'), 3)
    fresh = copy.deepcopy(model)
    other = optimizer(fresh)
    idle = PeriodicResampler(optim, PSWA(), 100)
    train(model, optim, idle, 2, start=3)
    train(fresh, other, PeriodicResampler(other, PSWA(), 100), 2, start=3)
    equal(model, fresh)


def test_a_mean_that_is_not_finite_is_dropped():
    w = nn.Parameter(torch.ones(2))
    messages = []
    resampler = PeriodicResampler(
        torch.optim.SGD([w], lr=0.), PSWM(0.5), 2, warn=messages.append)
    for value in (1., 3., float('inf'), 7., 1., 1.):
        w.data[0] = value
        resampler.step()
        if value == 7.:
            assert w.tolist() == [7, 1]
    assert w.tolist() == [1.5, 1]  # 0.5 * 2 + 0.5 * 1: the dropped left none
    assert len(messages) == 1
    assert 'at iteration 4, because its mean is not finite' in messages[0]


def test_a_buffer_that_is_not_finite_keeps_its_live_value():
    w = nn.Parameter(torch.ones(1))
    mask = torch.tensor([-torch.inf, 0.])
    resampler = PeriodicResampler(
        torch.optim.SGD([w], lr=0.), PSWA(), 2, buffers=[mask])
    for value in (1., 2.):
        w.data[0] = value
        resampler.step()
    assert w.item() == 1.5 and mask.tolist() == [-torch.inf, 0]


def test_a_window_without_a_sample_is_dropped():
    w = nn.Parameter(torch.ones(1))
    messages = []
    resampler = PeriodicResampler(torch.optim.SGD([w], lr=0.), PSWA(), 2,
                                  sample_prob=1e-9, warn=messages.append)
    for value in (1., 2.):
        w.data[0] = value
        resampler.step()
    assert w.item() == 2 and 'no update of its window' in messages[0]


def test_an_update_that_was_skipped_is_no_sample():
    w = nn.Parameter(torch.ones(1))
    resampler = PeriodicResampler(torch.optim.SGD([w], lr=0.), PSWA(), 3)
    for value, updated in ((1., True), (9., False), (3., True)):
        w.data[0] = value
        resampler.step(updated=updated)
    assert w.item() == 2 and resampler.newest.samples == 2


def test_shift_by_hand():
    w = nn.Parameter(torch.tensor([0., 0.]))
    resampler = PeriodicResampler(torch.optim.SGD([w], lr=0.), PSWA(), 2)
    for value in ([3., 0.], [3., 4.]):
        w.data = torch.tensor(value)
        resampler.step()
    assert resampler.newest == (2, 2 / 5, True)  # |(3,2) - (3,4)| / 5


@pytest.mark.parametrize('keys, message', [
    (dict(sample_prob=0), r'sample_prob=0 .*\(0, 1\]'),
    (dict(sample_prob=1.1), r'sample_prob=1.1'),
    (dict(sample_prob=True), r'sample_prob=True'),
    (dict(seed=-1), r'seed=-1'),
    (dict(optimizer_state='rest'), r"optimizer_state='rest'"),
    (dict(write_back=1), r'write_back=1'),
    (dict(evaluate='mean'), r"evaluate='mean'.*'average'"),
    (dict(weighting='even'), r"weighting='even'.*'linear'"),
    (dict(optimizer_state='reset', write_back=False), r'does nothing with'),
])
def test_bad_options(keys, message):
    with pytest.raises(ValueError, match=message):
        PeriodicResampler(sgd(make()), PSWA(), 2, **keys)


def test_parameters_that_cannot_be_averaged():
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    with pytest.raises(ValueError, match='nothing to average'):
        PeriodicResampler(torch.optim.SGD([frozen], lr=1.), PSWA(), 2)
    lazy = nn.LazyLinear(2)
    with pytest.raises(ValueError, match='weight is not initialised yet'):
        PeriodicResampler(torch.optim.SGD(lazy.parameters(), lr=1.), PSWA(), 2,
                          names={p: n for n, p in lazy.named_parameters()})
    sparse = torch.eye(2).to_sparse().requires_grad_(True)
    with pytest.raises(ValueError, match='number 0 of .*sparse_coo'):
        PeriodicResampler(torch.optim.SGD([sparse], lr=1.), PSWA(), 2)
    with pytest.raises(ValueError, match='last=6 is longer than the per'):
        PeriodicResampler(sgd(make()), PWALKS(last=6), 5)


def test_a_state_of_another_model_is_refused():
    small, big = nn.Linear(2, 2), nn.Linear(2, 3)
    saved = PeriodicResampler(sgd(small), PSWA(), 3)
    saved.step()
    for other in (big, nn.Sequential(small, big)):
        with pytest.raises(ValueError, match='does not fit this model'):
            PeriodicResampler(sgd(other), PSWA(),
                              3).load_state_dict(saved.state_dict())


def test_a_run_whose_end_nobody_knew_ends_with_what_was_sampled():
    w = nn.Parameter(torch.zeros(1))
    resampler = PeriodicResampler(torch.optim.SGD([w], lr=0.), PSWA(), 4)
    assert resampler.finish() is None
    for value in (1., 2., 3., 4., 5., 8.):  # 1 to 4 are a whole period
        w.data.fill_(value)
        resampler.step()
    assert resampler.finish().samples == 2 and w.item() == 6.5
    assert resampler.finish() is None


def test_memory_is_reused():
    model = make()
    resampler = PeriodicResampler(sgd(model), PSWA(), 3)
    pointers = set()
    for _ in range(9):
        resampler.step()
        pointers.add(tuple(t.data_ptr() for t in resampler._running.mean))
    assert len(pointers) == 1


def test_the_draws_are_the_same_for_the_same_seed():
    counts = []
    for seed in (0, 0, 1):
        w = nn.Parameter(torch.ones(1))
        resampler = PeriodicResampler(torch.optim.SGD([w], lr=0.), PSWA(), 200,
                                      sample_prob=0.3, seed=seed)
        counts.append([(resampler.step(), resampler.samples)[1]
                       for _ in range(199)])
    assert counts[0] == counts[1] != counts[2]
    # Binomial(199, 0.3): 60 expected, standard deviation 6.5
    assert all(abs(c[-1] - 60) < 4 * 6.5 for c in counts)
    assert list(itertools.accumulate(counts[0], max)) == counts[0]

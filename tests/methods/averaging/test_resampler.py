import pytest
import torch
from reference import statistics
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn

from mmpsw.methods.averaging import PSWA, PSWM, PWALKS, PeriodicResampler


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(),
                         nn.Linear(8, 2))


def of(w, technique, period, **keys):
    """A resampler of one parameter, which no optimizer moves."""
    return PeriodicResampler(
        torch.optim.SGD([w], lr=0.), technique, period, **keys)


def feed(w, resampler, values):
    for value in values:
        w.data[0] = value
        resampler.step()


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
        optim, PSWA(), 10, write_back=False, model=model)
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
    (PSWA(), True), (PSWA(), False), (PWALKS(last=3), True)])
def test_the_average_so_far_is_shown(technique, write_back):
    """By hand: the mean of what was sampled since the window began."""
    w = nn.Parameter(torch.zeros(1))
    resampler = of(w, technique, 4,
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


def test_half_precision_accumulates_in_fp32():
    """A bf16 mean would stand still after a few hundred samples."""
    w = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    resampler = of(w, PSWA(), 1001)
    feed(w, resampler, [0., 1.] * 500)
    assert resampler._running.mean[0].dtype == torch.float32
    assert resampler._running.mean[0].item() == pytest.approx(0.5, abs=1e-6)
    feed(w, resampler, [0.])
    assert w.dtype == torch.bfloat16 and w.item() == 0.5


def test_frozen_shared_and_several_groups():
    shared = nn.Parameter(torch.tensor([1.]))
    frozen = nn.Parameter(torch.tensor([1.]), requires_grad=False)
    unused = nn.Parameter(torch.tensor([1.]))  # never gets a gradient
    module = nn.Module()
    module.a, module.b = shared, shared
    module.register_buffer('steps', torch.tensor(0))
    module.register_buffer('running_mean', torch.tensor(0.))
    module.register_buffer('running_var', torch.tensor(0.))
    module.register_buffer('memory', torch.tensor(0.))
    optim = torch.optim.SGD([dict(params=[frozen, shared]),
                             dict(params=[unused])], lr=1.)
    optim.param_groups.append(dict(optim.param_groups[0], params=[]))
    resampler = PeriodicResampler(optim, PSWA(), 2, model=module)
    assert len(resampler.tensors) == 2 + 2
    shared.grad = torch.tensor([-1.])
    for _ in (1, 2):
        frozen.data += 1
        module.steps += 1
        module.running_mean += 1
        module.memory += 1
        optim.step()
        resampler.step()
    assert shared.item() == 2.5  # (2 + 3) / 2
    assert frozen.item() == 3 and unused.item() == 1
    assert module.steps.item() == 2 and module.memory.item() == 2
    assert module.running_mean.item() == 1.5
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


def test_a_mean_that_is_not_finite_is_dropped():
    w = nn.Parameter(torch.ones(2))
    messages = []
    resampler = of(w, PSWM(0.5), 2, warn=messages.append)
    feed(w, resampler, (1., 3., float('inf'), 7.))
    assert w.tolist() == [7, 1]
    feed(w, resampler, (1., 1.))
    assert w.tolist() == [1.5, 1]  # 0.5 * 2 + 0.5 * 1: the dropped left none
    assert len(messages) == 1
    assert 'at iteration 4, because its mean is not finite' in messages[0]


def test_a_statistic_that_is_not_finite_keeps_its_live_value():
    w = nn.Parameter(torch.ones(1))
    lowest = torch.tensor([-torch.inf, 0.])
    resampler = of(w, PSWA(), 2, statistics=statistics(lowest=lowest))
    feed(w, resampler, (1., 2.))
    assert w.item() == 1.5 and lowest.tolist() == [-torch.inf, 0]


def test_a_window_without_a_sample_is_dropped():
    w = nn.Parameter(torch.ones(1))
    messages = []
    resampler = of(w, PSWA(), 2,
                                  sample_prob=1e-9, warn=messages.append)
    feed(w, resampler, (1., 2.))
    assert w.item() == 2 and 'no update of its window' in messages[0]


def test_shift_by_hand():
    w = nn.Parameter(torch.tensor([0., 0.]))
    resampler = of(w, PSWA(), 2)
    for value in ([3., 0.], [3., 4.]):
        w.data = torch.tensor(value)
        done = resampler.step()
    assert done == (2, 2 / 5, True)  # |(3,2) - (3,4)| / 5


def test_what_is_forgotten_does_not_count():
    """By hand: 'polyak' begins anew where the parameters are others."""
    a = nn.Parameter(torch.zeros(1))
    b = nn.Parameter(torch.zeros(1), requires_grad=False)
    resampler = PeriodicResampler(
        torch.optim.SGD([a, b], lr=0.), PSWM('polyak'), 2,
        warn=lambda message: None)
    feed(a, resampler, (1., 2., 3., 4.))  # 1.5; (1.5 + 3.5) / 2
    assert a.item() == 2.5
    b.requires_grad_(True)
    feed(a, resampler, (10., 20.))
    assert a.item() == 15
    feed(a, resampler, (30., 40.))
    assert a.item() == (15 + 35) / 2


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_statistics_are_found_where_the_model_has_them_now(dtype):
    """A hook sets new tensors; a model moves after the resampler was made."""
    norm = nn.BatchNorm1d(1)
    resampler = PeriodicResampler(
        torch.optim.SGD(norm.parameters(), lr=0.), PSWA(), 4, model=norm)
    norm.to(dtype)
    for value in (1., 2., 3., 6.):
        norm.running_mean = torch.tensor([value], dtype=dtype)
        resampler.step()
    assert norm.running_mean.item() == 3
    assert norm.running_mean.dtype == dtype


def test_a_model_that_moves_between_periods():
    """The mean is accumulated in the new precision, and PSWM's m_prev is."""
    w = nn.Parameter(torch.zeros(1))
    resampler = of(w, PSWM(0.5), 2)
    feed(w, resampler, (1., 2.))
    w.data = w.data.double()
    feed(w, resampler, (1. + 2**-40, 3.))
    assert resampler._running.mean[0].dtype == torch.float64
    assert w.item() == 0.5 * 1.5 + 0.5 * 2  # m_prev stays in fp32


def test_a_period_in_which_nothing_is_trainable():
    w = nn.Parameter(torch.ones(1))
    messages = []
    resampler = of(w, PSWA(), 2, warn=messages.append)
    feed(w, resampler, (1., 2.))
    w.requires_grad_(False)
    feed(w, resampler, (3., 4.))
    assert w.item() == 4
    assert len(messages) == 1 and 'nothing was trainable' in messages[0]
    w.requires_grad_(True)
    feed(w, resampler, (5., 6.))
    assert w.item() == 5.5


def test_after_the_end_the_live_weights_are_shown():
    w = nn.Parameter(torch.zeros(1))
    messages = []
    resampler = of(w, PSWA(), 2, end=4, write_back=False,
                   warn=messages.append)

    def shown(*values):
        feed(w, resampler, values)
        with resampler.averaged():
            return w.item()

    assert (shown(1., 2.), shown(3., 4.)) == (1.5, 3.5)
    assert not messages
    assert (shown(5.), shown(6.)) == (5, 6)
    assert len(messages) == 1 and 'ended with iteration 4' in messages[0]


@pytest.mark.parametrize('interrupted', [1, 2])
def test_an_interruption_while_the_average_is_put_in(monkeypatch, interrupted):
    """Before the live weights are kept whole, none of them has changed."""
    params = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    resampler = PeriodicResampler(
        torch.optim.SGD(params, lr=0.), PSWA(), 2, write_back=False)
    for value in (1., 2., 3.):
        for param in params:
            param.data.fill_(value)
        resampler.step()
    copies = []

    def copy_(targets, sources):
        copies.append(None)
        targets[0].data.copy_(sources[0])
        if len(copies) == interrupted:
            raise KeyboardInterrupt
        targets[1].data.copy_(sources[1])

    monkeypatch.setattr('mmpsw.methods.averaging.resampler.copy_', copy_)
    with pytest.raises(KeyboardInterrupt):
        with resampler.averaged():
            pass
    assert [param.item() for param in params] == [3, 3]


@pytest.mark.parametrize('keys, message', [
    (dict(sample_prob=0), r'sample_prob=0 .*\(0, 1\]'),
    (dict(sample_prob=1.1), r'sample_prob=1.1'),
    (dict(sample_prob=True), r'sample_prob=True'),
    (dict(seed=-1), r'seed=-1'),
    (dict(write_back=1), r'write_back=1'),
    (dict(evaluate='mean'), r"evaluate='mean'.*'average'"),
    (dict(weighting='even'), r"weighting='even'.*'linear'"),
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
    with pytest.raises(ValueError, match='param.0 of .*sparse_coo'):
        PeriodicResampler(torch.optim.SGD([sparse], lr=1.), PSWA(), 2)
    with pytest.raises(ValueError, match='last=6 is longer than the per'):
        PeriodicResampler(sgd(make()), PWALKS(last=6), 5)


def test_a_state_with_samples_but_without_their_mean_is_refused():
    """What a partial load makes; the next sample would be of nothing."""
    saved = of(nn.Parameter(torch.ones(1)), PSWA(), 3)
    saved.step()
    state = saved.state_dict()
    del state['mean']
    with pytest.raises(ValueError, match='holds 1 samples but no mean'):
        of(nn.Parameter(torch.ones(1)), PSWA(), 3).load_state_dict(state)


def test_a_state_of_another_model_is_refused():
    small, big = nn.Linear(2, 2), nn.Linear(2, 3)
    saved = PeriodicResampler(sgd(small), PSWA(), 3)
    saved.step()
    for other in (big, nn.Sequential(small, big)):
        with pytest.raises(ValueError, match='does not fit this model'):
            PeriodicResampler(sgd(other), PSWA(),
                              3).load_state_dict(saved.state_dict())

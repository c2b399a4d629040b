"""Random schedules, shapes, dtypes and interruptions, against the definition.

Hypothesis draws the same examples in each run, so that the suite is stable.
What is stated here about rounding, with u the unit roundoff of the dtype in
which a mean is accumulated (2**-24 for fp32) and v that of the live weights:

- a resampling of n samples differs from float64 by no more than
  ``n * u`` of the largest sample, and the writing back adds ``v`` of m;
- equal samples' mean is that sample, but for the sign of a zero;
- a mean is within the range of its samples, exactly;
- interruptions and resumes change no bit.
"""
import io
from dataclasses import dataclass

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import Reference, statistics
from torch import nn

from mmpsw.methods.averaging import (
    PSWA,
    PSWM,
    PWALKS,
    PeriodicResampler,
    RunningMean,
)
from mmpsw.methods.averaging.mean import ACCUMULATED_IN

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def examples(count):
    return hypothesis.settings(
        max_examples=count, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(hypothesis.HealthCheck))


@dataclass(frozen=True)
class Plan:
    """A run that is made up."""

    technique: object
    period: int
    accumulation: int
    begin: int
    end: int | None
    total: int | None
    iterations: int
    sample_prob: float
    write_back: bool
    skipped: int
    interrupted: frozenset
    evaluate: str
    shapes: tuple
    seed: int
    weighting: str

    def updates(self, start, stop):
        """The iterations in (start, stop] that update."""
        return [i for i in range(start + 1, stop + 1)
                if i % self.accumulation == 0 or i == self.total]

    def window(self, updates):
        """L, written out anew."""
        last = getattr(self.technique, 'last', None)
        if last is None:
            return updates
        if isinstance(last, int):
            return min(last, updates)
        return max(1, round(last * updates))

    def place(self, iteration):
        """The period's updates, by counting them out; or nothing."""
        start = self.begin
        while start + self.period < iteration:
            start += self.period
        stops = (start + self.period, self.end, self.total)
        stop = min(s for s in stops if s is not None)
        if not start < iteration <= stop:
            return []
        return self.updates(start, stop)


@st.composite
def plans(draw):
    accumulation = draw(st.integers(1, 3))
    period = draw(st.integers(accumulation, 7))
    begin = draw(st.integers(0, 5))
    last = st.one_of(st.floats(0.05, 1.),
                     st.integers(1, period // accumulation))
    momentum = st.one_of(st.floats(0., 0.95),
                         st.sampled_from(['sample', 'polyak']))
    total = draw(st.none() | st.integers(1, 20))
    iterations = draw(st.integers(1, 20))
    technique = draw(
        st.one_of(st.just(PSWA()), st.builds(PWALKS, last=last),
                  st.builds(PSWM, momentum=momentum, last=st.none() | last)))
    # Else nothing would ever change, which is refused.
    hypothesis.assume(technique.window(-(-period // accumulation)) > 1
                      or technique.beta(1, 1) > 0)
    return Plan(
        technique=technique,
        period=period,
        accumulation=accumulation,
        begin=begin,
        end=draw(st.none() | st.integers(begin + 1, 20)),
        total=total,
        iterations=iterations if total is None else min(iterations, total),
        sample_prob=draw(st.sampled_from([1., 0.5])),
        write_back=draw(st.booleans()),
        skipped=draw(st.integers(2, 12)),
        interrupted=draw(st.frozensets(st.integers(1, 20), min_size=1)),
        evaluate=draw(st.sampled_from(['resampled', 'average'])),
        shapes=tuple(draw(st.lists(
            st.tuples(st.sampled_from(DTYPES),
                      st.lists(st.integers(0, 3), max_size=3)),
            min_size=1, max_size=3))),
        seed=draw(st.integers(0, 2**31)),
        weighting=draw(st.sampled_from(['uniform', 'linear'])))


def build(plan):
    params = [nn.Parameter(torch.zeros(s, dtype=d)) for d, s in plan.shapes]
    stats = torch.zeros(2)
    resampler = PeriodicResampler(
        torch.optim.SGD(params, lr=1.), plan.technique, plan.period,
        begin=plan.begin, end=plan.end, total=plan.total,
        accumulation=plan.accumulation,
        sample_prob=plan.sample_prob, seed=plan.seed,
        statistics=statistics(stats=stats),
        write_back=plan.write_back, weighting=plan.weighting,
        evaluate=plan.evaluate, warn=lambda message: None)
    return [*params, stats], resampler


def move(plan, live, iteration):
    """What an update does, whatever it is."""
    generator = torch.Generator().manual_seed(plan.seed + iteration)
    for tensor in live:
        tensor.data += torch.randn(
            tensor.shape, generator=generator, device='cpu').to(tensor.data)


def reloaded(plan, live, resampler):
    file = io.BytesIO()
    torch.save((live, resampler.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other, fresh = build(plan)
    for tensor, saved in zip(other, weights):
        tensor.data.copy_(saved)
    fresh.load_state_dict(state)
    return other, fresh


def train(plan, interrupted=(), check=None):
    live, resampler = build(plan)
    for iteration in range(1, plan.iterations + 1):
        if iteration in plan.updates(0, plan.iterations):
            updated = iteration % plan.skipped != 0
            if updated:
                move(plan, live, iteration)
            before = [t.detach().clone() for t in live]
            # It counts by itself where each iteration updates.
            done = resampler.step(
                None if plan.accumulation == 1 else iteration, updated)
            if check is not None:
                check(iteration, before, live, resampler, updated, done)
        if iteration in interrupted:
            live, resampler = reloaded(plan, live, resampler)
    return [*live, *(resampler.average or [])]


class Definition:
    """Checks each step against the samples that it saw."""

    def __init__(self, plan):
        self.plan = plan
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.updated = True
        momentum = getattr(plan.technique, 'momentum', None)
        self.reference = Reference(1, 1, momentum, self.draw, plan.weighting)

    def draw(self):
        return self.updated and (self.plan.sample_prob == 1 or torch.rand(
            (), generator=self.generator, device='cpu',
            dtype=torch.float64) < self.plan.sample_prob)

    def __call__(self, iteration, before, live, resampler, updated, done):
        self.updated = updated
        updates = self.plan.place(iteration)
        m = None
        if updates:
            self.reference.updates = len(updates)
            self.reference.window = self.plan.window(len(updates))
            m = self.reference.step(before)
        assert (done is not None) == (updates[-1:] == [iteration])
        if m is None or self.plan.write_back is False:
            for tensor, old in zip(live, before):
                assert torch.equal(tensor, old)
        if m is None:
            return
        written = live if self.plan.write_back else resampler.average
        largest = 8.  # of 20 steps of standard deviation 1
        for tensor, expected, old in zip(written, m, before):
            accumulated = torch.finfo(ACCUMULATED_IN[old.dtype]).eps
            error = (tensor.detach().double() - expected).abs()
            bound = (done.samples + 3) * largest * accumulated
            bound = bound + torch.finfo(tensor.dtype).eps / 2 * expected.abs()
            assert (error <= bound).all(), (error, bound)


@examples(150)
@given(plans())
def test_each_resampling_is_the_definition(plan):
    train(plan, check=Definition(plan))


@examples(150)
@given(plans())
def test_an_interruption_changes_no_bit(plan):
    whole = train(plan)
    resumed = train(plan, interrupted=plan.interrupted)
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a, b)


def floats(dtype):
    """Finite values of a dtype, extreme and subnormal ones too."""
    if dtype == torch.bfloat16:  # the upper half of an fp32
        bits = st.integers(0, 2**16 - 1).map(
            lambda b: torch.tensor(b, dtype=torch.int32).to(
                torch.int16).view(torch.bfloat16).item())
        return bits.filter(lambda x: abs(x) < float('inf'))
    return st.floats(width=torch.finfo(dtype).bits,
                     allow_nan=False, allow_infinity=False)


def values_of(dtype, size):
    return st.lists(floats(dtype), min_size=size, max_size=size).map(
        lambda values: torch.tensor(values, dtype=dtype))


def resampler_of(w, technique, period, **keys):
    return PeriodicResampler(torch.optim.SGD([w], lr=0.), technique, period,
                             warn=lambda message: None, **keys)


@pytest.mark.parametrize('dtype', DTYPES)
@examples(25)
@given(st.data(), st.integers(1, 300))
def test_a_mean_of_equal_weights_is_those_weights(dtype, data, samples):
    before = data.draw(values_of(dtype, 4))
    w = nn.Parameter(before.clone())
    resampler = resampler_of(w, PSWM(momentum=0.3), samples)
    for _ in range(2 * samples):
        done = resampler.step()
    assert done.applied
    assert torch.equal(w, before)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('technique', [PSWA(), PSWM(0.3), PSWM('polyak')])
@examples(25)
@given(st.data(), st.integers(2, 9), st.sampled_from(['uniform', 'linear']))
def test_a_mean_is_within_the_samples(dtype, technique, data, period,
                                      weighting):
    """Within all of them so far, for a PSWM."""
    samples = [data.draw(values_of(dtype, 3)) / 2 for _ in range(2 * period)]
    w = nn.Parameter(samples[0].clone())
    resampler = resampler_of(w, technique, period, weighting=weighting)
    for i, sample in enumerate(samples, start=1):
        w.data.copy_(sample)
        done = resampler.step()
        if done is None:
            continue
        first = 0 if isinstance(technique, PSWM) else i - period
        seen = torch.stack(samples[first:i])
        assert done.applied
        assert (w >= seen.amin(0)).all() and (w <= seen.amax(0)).all()


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('write_back', [True, False])
@examples(40)
@given(st.data(), st.integers(1, 4))
def test_what_is_not_finite_never_reaches_the_weights(
        dtype, write_back, data, period):
    """Also the difference of two finite samples may overflow."""
    any_value = st.one_of(
        floats(dtype),
        st.sampled_from([torch.inf, -torch.inf, torch.nan,
                         torch.finfo(dtype).max, -torch.finfo(dtype).max]))
    w = nn.Parameter(torch.zeros(2, dtype=dtype))
    resampler = resampler_of(w, PSWM(), period, write_back=write_back)
    for _ in range(3 * period):
        sample = torch.tensor([data.draw(any_value), data.draw(any_value)],
                              dtype=dtype)
        w.data.copy_(sample)
        done = resampler.step()
        if done is None or not done.applied or not write_back:
            assert torch.equal(w.nan_to_num(7.), sample.nan_to_num(7.))
        else:
            assert torch.isfinite(w).all()
        for kept in resampler.state_dict().get('previous', {}).values():
            assert torch.isfinite(kept).all()


@pytest.mark.parametrize('dtype, large', [
    (torch.float16, 1e5),  # its largest is 65504
    (torch.bfloat16, torch.finfo(torch.float32).max),
])
def test_a_blend_that_overflows_narrower_weights_is_dropped(dtype, large):
    """What was fp32 in the last period is half precision in this one."""
    w = nn.Parameter(torch.full((2, ), large))
    messages = []
    resampler = PeriodicResampler(
        torch.optim.SGD([w], lr=0.), PSWM(0.9999), 2, warn=messages.append)
    for _ in range(2):
        resampler.step()
    w.data = torch.full((2, ), 3., dtype=dtype)
    for _ in range(2):
        done = resampler.step()
    assert w.tolist() == [3, 3] and not done.applied
    assert 'at iteration 4, because its blend with the past' in messages[0]
    for _ in range(2):
        done = resampler.step()
    assert w.tolist() == [3, 3] and done.applied


def test_the_mean_of_1e5_samples_that_drift():
    """fp32 loses what README's bound says, n / 2 units, and no more."""
    drift = torch.logspace(-7, 0.5, 61, dtype=torch.float64).tile(6)
    start = torch.tensor([1., 1.3, 1.99, 0.5001, -1.1, 1.7],
                         dtype=torch.float64).repeat_interleave(61)
    torch.manual_seed(0)
    noise = torch.tensor([0., 1e-4]).double()[torch.randint(2, start.shape)]
    w, n = torch.empty(start.shape), 100_000
    mean = RunningMean()
    total = torch.zeros_like(start)
    for times in torch.arange(n).split(1000):
        samples = start * (1 + drift * (times[:, None] / n) + noise *
                           torch.randn(1000, *start.shape).double())
        for sample in samples.float():
            w.copy_(sample)
            mean.update([w])
        total += samples.float().double().sum(0)
    error = (mean.mean[0] / (total / n) - 1).abs().max().item()
    assert 1e-3 < error < 1e5 / 2 * 2**-24

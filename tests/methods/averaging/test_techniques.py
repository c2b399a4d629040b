import pytest
import torch

from mmpsw.methods.averaging import (
    PSWA,
    PSWM,
    PWALKS,
    PeriodicResampler,
    build_technique,
)


def run(technique, updates, **keys):
    """w = 0, and each update adds 1; the weight after each step()."""
    w = torch.nn.Parameter(torch.zeros(1))
    w.grad = torch.tensor([-1.])
    optimizer = torch.optim.SGD([w], lr=1.)
    resampler = PeriodicResampler(optimizer, technique, **keys)
    trajectory = []
    for _ in range(updates):
        optimizer.step()
        resampler.step()
        trajectory.append(w.item())
    return trajectory


def test_pswa_by_hand():
    # 1, 2, 3 -> mean(1, 2, 3) = 2; then 3, 4, 5 -> mean(3, 4, 5) = 4
    assert run(PSWA(), 7, period=3) == [1, 2, 2, 3, 4, 4, 5]


def test_pwalks_by_hand():
    # 1, 2, 3, 4 -> mean(3, 4) = 3.5; then 4.5, ..., 7.5 -> mean(6.5, 7.5) = 7
    expected = [1, 2, 3, 3.5, 4.5, 5.5, 6.5, 7]
    assert run(PWALKS(last=2), 8, period=4) == expected
    assert run(PWALKS(last=0.5), 8, period=4) == expected


@pytest.mark.parametrize('momentum, expected', [
    # means: (1, 2) -> 1.5, the first m. Then 2.5, 3.5 -> mu = 3, ...
    (0.5, [1, 1.5, 2.5, 2.25, 3.25, 3.0]),
    ('sample', [1, 1.5, 2.5, 2.5, 3.5, 3.5]),  # 1/3 * 1.5 + 2/3 * 3 = 2.5
    ('polyak', [1, 1.5, 2.5, 2.25, 3.25, 2.75]),  # 2/3 * 2.25 + 1/3 * 3.75
])
def test_pswm_by_hand(momentum, expected):
    # 0.5: 0.5 * 1.5 + 0.5 * 3 = 2.25; 0.5 * 2.25 + 0.5 * 3.75 = 3.0
    # sample: mu = mean(3.5, 4.5) = 4; 1/3 * 2.5 + 2/3 * 4 = 3.5
    result = run(PSWM(momentum=momentum), 6, period=2)
    assert result == pytest.approx(expected, abs=1e-6)


def test_linear_weights_by_hand():
    # (1 * 1 + 2 * 2 + 3 * 3) / 6 = 14 / 6; then from there on, 1 to 3 further
    third = 14 / 6
    expected = [1, 2, third, third + 1, third + 2, 2 * third]
    result = run(PSWA(), 6, period=3, weighting='linear')
    assert result == pytest.approx(expected, abs=1e-6)


def test_begin_end_and_total_by_hand():
    # nothing before 2; (3, 4) -> 3.5; (4.5, 5.5) -> 5; nothing from 6 on
    assert run(
        PSWA(), 8, period=2, begin=2,
        end=6) == [1, 2, 3, 3.5, 4.5, 5, 6, 7]
    # the last period is cut to one update, whose mean is itself
    assert run(PSWA(), 5, period=2, total=5) == [1, 1.5, 2.5, 3, 4]
    # ... to two of three: mean(3, 4)
    assert run(PSWA(), 5, period=3, total=5) == [1, 2, 2, 3, 3.5]


@pytest.mark.parametrize('technique, period, message', [
    (PWALKS(last=1), 3, r'last=1 is a window of one update.*1.0, a float'),
    (PWALKS(last=0.1), 4, r'last=0.1 is a window of one update'),
    (PSWM(momentum=0, last=1), 3, r'last=1 is a window of one update'),
    (PSWA(), 1, r'The period holds one update only.*use a longer period'),
])
def test_a_window_of_one_would_change_nothing(technique, period, message):
    with pytest.raises(ValueError, match=message):
        run(technique, 5, period=period)
    # ... but for Lookahead, which blends it: 0.5 * 3 + 0.5 * 6 = 4.5
    momentum = PSWM(momentum=0.5, last=1)
    assert run(momentum, 6, period=3) == [1, 2, 3, 4, 5, 4.5]


@pytest.mark.parametrize('keys, message', [
    (dict(type='SWA'), r"type='SWA' is unknown: use one of 'PSWA'"),
    (dict(type='PSWA', last=0.5),
     r"last=0.5 is not a key of PSWA.*type='PWALKS' or 'PSWM'"),
    (dict(type='PSWA', momentum=0.5), r"is not a key of PSWA.*'PSWM'"),
    (dict(type='PWALKS', last=1, lats=0.5), r'lats=0.5 is not a key that'),
    (dict(type='PWALKS'), r'last is missing.*last=0.25'),
    (dict(type='PWALKS', last=0), r'last=0 is not a window.*\(0, 1\]'),
    (dict(type='PWALKS', last=0.0), r'last=0.0 is not a window'),
    (dict(type='PWALKS', last=1.5), r'last=1.5 is not a window'),
    (dict(type='PWALKS', last=-3), r'last=-3 is not a window'),
    (dict(type='PWALKS', last=True), r'last=True is not a window'),
    (dict(type='PWALKS', last='0.5'), r"last='0.5' is not a window"),
    (dict(type='PSWM', last=2.0), r'last=2.0 is not a window'),
    (dict(type='PSWM', momentum=1.0), r'momentum=1.0 .*\[0, 1\)'),
    (dict(type='PSWM', momentum=-0.1), r'momentum=-0.1'),
    (dict(type='PSWM', momentum='mean'), r"momentum='mean'"),
    (dict(type='PSWM', momentum=float('nan')), r'momentum=nan'),
])
def test_bad_keys(keys, message):
    with pytest.raises(ValueError, match=message):
        build_technique(**keys)

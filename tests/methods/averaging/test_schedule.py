import pytest

from mmpsw.methods.averaging import Schedule


def places(schedule, iterations, accumulation=1, total=None):
    """(update, updates) at each iteration that updates."""
    found = {i: schedule.locate(i) for i in range(1, iterations + 1)}
    updates = [i for i in found if i % accumulation == 0 or i == total]
    # A period ends with an update, and with none but its last.
    for i, place in found.items():
        ends = i in updates and place.update == place.updates
        assert place is None or place.ends == ends
    return [found[i][:2] for i in updates]


def test_accumulation_that_does_not_divide_the_period():
    # updates at 3, 6, 9 | 12, 15, 18 | 21, 24, 27, 30: periods of 10
    # iterations hold 3, 3 and 4 updates.
    assert places(Schedule(10, accumulation=3), 30, 3) == [
        (1, 3), (2, 3), (3, 3), (1, 3), (2, 3), (3, 3), (1, 4), (2, 4),
        (3, 4), (4, 4)
    ]


def test_the_last_iteration_of_the_training_updates():
    # updates at 4 | 8 | 12, and at 14, where the training ends
    schedule = Schedule(7, accumulation=4, total=14)
    assert places(schedule, 14, 4, 14) == [(1, 1), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize('keys, message', [
    (dict(period=0), r'period=0 is not possible: .* >= 1'),
    (dict(period=1.5), r'period=1.5'),
    (dict(period=True), r'period=True'),
    (dict(period=1, begin=-1), r'begin=-1'),
    (dict(period=1, begin=3, end=3), r'begin=3 is not before end=3'),
    (dict(period=1, end=0), r'end=0'),
    (dict(period=3, accumulation=4), r'holds no optimizer update'),
])
def test_bad_values(keys, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**keys)

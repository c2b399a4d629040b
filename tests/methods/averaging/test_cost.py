"""What sampling costs, counted: operations, bytes and memory."""
import pytest
import torch
from torch import nn

from mmpsw.benchmark.counting import counted, peak_memory
from mmpsw.methods.averaging import PSWA, PSWM, PWALKS, PeriodicResampler

BUFFER_BYTES = 4 * 32768  # for one thread: what half precision goes through


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def resampler(sizes, technique, period, dtype=torch.float32, **keys):
    params = [nn.Parameter(torch.ones(n, dtype=dtype)) for n in sizes]
    return PeriodicResampler(
        torch.optim.SGD(params, lr=0.), technique, period, **keys)


@pytest.mark.parametrize('tensors', [10, 100, 1000])
def test_a_sample_of_fp32_is_one_operation_of_12_bytes(tensors):
    psw = resampler([100_000 // tensors] * tensors, PSWA(), 5)
    first, second, third = (counted(psw.step) for _ in range(3))
    assert first.operations[-1:] == ['_foreach_copy_']
    assert first.operations[:-1] == ['empty_like'] * tensors
    assert first.bytes == 8 * 100_000 and first.allocated == 4 * 100_000
    for count in (second, third):
        assert count.operations == ['_foreach_lerp_']
        assert count.bytes == 12 * 100_000 and count.allocated == 0


def test_short_vectors_are_joined():
    """8 bytes more for 1 % of the elements; too many are not joined."""
    few, many = [[size] * 10 + [100_000] for size in (100, 200)]
    psw = resampler(few, PSWA(), 5)
    first, second = counted(psw.step), counted(psw.step)
    assert sorted(first.operations) == sorted(
        ['empty_like'] * 2 + ['empty', '_foreach_copy_', 'cat'])
    assert first.bytes == 8 * 101_000
    assert first.allocated == 4 * 101_000 + 4 * 1000  # the means, the buffer
    assert sorted(second.operations) == ['_foreach_lerp_', 'cat', 'lerp_']
    assert second.bytes == 12 * 101_000 + 8 * 1000
    assert second.bytes < 12.1 * 101_000 and second.allocated == 0
    psw = resampler(many, PSWA(), 5)
    psw.step()
    assert counted(psw.step).operations == ['_foreach_lerp_']


def test_a_later_window_allocates_nothing():
    psw = resampler([1000] * 3, PSWA(), 3)
    for _ in range(3):
        psw.step()
    again = counted(psw.step)
    assert again.operations == ['_foreach_copy_']
    assert again.bytes == 8 * 3000 and again.allocated == 0


def test_one_operation_for_each_dtype():
    params = [
        nn.Parameter(torch.ones(10, dtype=dtype))
        for dtype in [torch.float32, torch.float64] * 5
    ]
    psw = PeriodicResampler(torch.optim.SGD(params, lr=0.), PSWA(), 5)
    psw.step()
    assert counted(psw.step).operations == ['_foreach_lerp_'] * 2


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('sizes', [
    [100] * 1000,
    [100_000],
    [65536, 32768, 1, 1695],
])
def test_a_sample_of_half_precision(dtype, sizes):
    """2 bytes of w and 8 of mu, and twice 4 that stay in the cache.

    The operations grow with the parameters (4 times 32768 hold 100 000), but
    not with the tensors.
    """
    psw = resampler(sizes, PSWA(), 5, dtype)
    first, second = counted(psw.step), counted(psw.step)
    assert first.operations[-1] == '_foreach_copy_'
    assert first.bytes == (2 + 4) * 100_000
    assert first.allocated == 4 * 100_000 + BUFFER_BYTES - (
        0 if max(sizes) >= 32768 else 4 * (32768 % 100))
    assert second.operations == ['_foreach_copy_', '_foreach_lerp_'
                            ] * 4
    assert second.bytes == (2 + 8 + 4 + 4) * 100_000
    assert second.allocated == 0


@pytest.mark.parametrize('tensors', [1, 50, 2000])
def test_a_resampling_by_hand(tensors):
    """Four pieces, or batches, of 32768 numbers hold all.

    A sample (12 bytes), whether the mean is finite (4), the shift: m - w is
    made in the cache (8 + 4), the norms of it and of w (4 + 4), and the
    writing back (8); and the norms themselves, which are written and read.
    """
    psw = resampler([100_000 // tensors] * tensors, PSWA(), 2)
    psw.step()
    count = counted(psw.step)
    assert count.operations == [
        '_foreach_lerp_',
        *['_foreach_norm'] * 4, 'stack',
        *['_foreach_sub', '_foreach_norm', '_foreach_norm'] * 4, 'stack',
        '_foreach_copy_'
    ]
    norms = 4 * 3 * max(4, tensors)
    assert count.bytes == 44 * 100_000 + 3 * norms
    assert count.allocated == 4 * 100_000 + 2 * norms


def test_nothing_outside_of_the_window():
    psw = resampler([10] * 10, PWALKS(last=2), 10, sample_prob=0.5)
    for _ in range(8):
        assert counted(psw.step).operations == []


@pytest.mark.parametrize('technique, write_back, copies', [
    (PSWA(), True, 1),
    (PWALKS(last=0.5), True, 1),
    (PSWM(), True, 2),
    (PSWA(), False, 2),
])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_the_memory_of_three_periods(technique, write_back, copies, dtype):
    """One fp32 copy, PSWM and the control arm two: also at a resampling."""
    psw = resampler([1_000_000, 3, 300_000], technique, 4, dtype,
                    write_back=write_back)
    copy = 4 * 1_300_003

    def train():
        for _ in range(12):
            if psw.step() is not None:
                with psw.averaged():
                    pass

    peak = peak_memory(train, torch.device('cpu'))
    assert peak >= copies * copy
    # Beside the copies only a few pieces, in fp32 and in float64.
    assert peak < copies * copy + 8 * BUFFER_BYTES


def test_no_sample_is_taken_of_the_average():
    """The live weights are then where the next samples would go."""
    psw = resampler([2], PSWA(), 1, write_back=False)
    psw.step()
    with psw.averaged(), pytest.raises(ValueError, match='inside of averag'):
        psw.step()
    psw.step()


@pytest.mark.parametrize('block, more', [(None, 0), (128, 1)])
def test_many_samples_take_another_copy_only_in_blocks(block, more):
    psw = resampler([50, 50], PSWA(), 1000, block=block)
    allocated = [counted(psw.step).allocated for _ in range(300)]
    assert allocated[0] == 400
    assert allocated[128] == 400 * more
    assert sum(allocated) == 400 * (1 + more)

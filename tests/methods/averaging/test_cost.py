"""What sampling costs, counted: operations, new bytes and memory."""
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmpsw.methods.averaging import PSWA, PSWM, PWALKS, PeriodicResampler


class Counted(TorchDispatchMode):
    """The names of all operations, and the bytes that they allocate."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self.allocated = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix('aten::')
        result = func(*args, **(kwargs or {}))
        self.operations.append(name)
        if isinstance(result, torch.Tensor) and not name.endswith('_'):
            self.allocated += result.untyped_storage().nbytes()
        return result


def counted(call):
    with Counted() as count:
        call()
    return count


def resampler(sizes, technique, period, dtype=torch.float32, **keys):
    params = [nn.Parameter(torch.ones(n, dtype=dtype)) for n in sizes]
    return PeriodicResampler(
        torch.optim.SGD(params, lr=0.), technique, period, **keys)


@pytest.mark.parametrize('tensors', [10, 1000])
def test_a_sample_of_fp32_is_one_operation(tensors):
    """It reads w and mu and writes mu: 12 bytes, and allocates nothing."""
    psw = resampler([100_000 // tensors] * tensors, PSWA(), 5)
    first, second, third = (counted(psw.step) for _ in range(3))
    assert first.operations == ['empty_like'] * tensors + ['_foreach_copy_']
    assert first.allocated == 4 * 100_000
    for count in (second, third):
        assert count.operations == ['_foreach_lerp_']
        assert count.allocated == 0


def test_a_later_window_allocates_nothing():
    psw = resampler([1000] * 3, PSWA(), 3)
    for _ in range(3):
        psw.step()
    again = counted(psw.step)
    assert again.operations == ['_foreach_copy_'] and again.allocated == 0


def test_one_operation_for_each_dtype():
    params = [
        nn.Parameter(torch.ones(10, dtype=dtype))
        for dtype in [torch.float32, torch.float64] * 5
    ]
    psw = PeriodicResampler(torch.optim.SGD(params, lr=0.), PSWA(), 5)
    psw.step()
    assert counted(psw.step).operations == ['_foreach_lerp_'] * 2


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_converted_one_tensor_at_a_time(dtype):
    psw = resampler([100_000, 7], PSWA(), 5, dtype)
    psw.step()
    assert counted(psw.step).operations == ['_to_copy', 'lerp_'] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('device', ['cuda'], indirect=True)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_no_sample_waits_for_the_gpu(dtype):
    psw = resampler([1000] * 3, PSWA(), 6, dtype, sample_prob=0.5)
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(5):
            psw.step()
    finally:
        torch.cuda.set_sync_debug_mode('default')


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
    """One fp32 copy, PSWM and psw two: also at a resampling."""
    psw = resampler([1000, 3, 2000], technique, 4, dtype,
                    write_back=write_back)
    for _ in range(12):
        if psw.step() is not None:
            with psw.averaged():
                kept = {
                    tensor.data_ptr(): tensor.nbytes
                    for part in (psw._running.mean, psw._previous, psw._live)
                    for tensor in part or ()
                }
            assert sum(kept.values()) == copies * 4 * 3003


class Temporaries(TorchDispatchMode):
    """The most bytes that one operation on several tensors has returned."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, (list, tuple)) and 'split' not in str(func):
            self.most = max(self.most, sum(t.nbytes for t in result))
        return result


@pytest.mark.parametrize('sizes', [
    [1 << 20] * 40, [(1 << 24) + 1], [(3, 1 << 23), 7]])
def test_temporaries_of_a_resampling_are_bounded_in_bytes(sizes):
    """Whether the weights are many tensors, or one that is large."""
    psw = resampler(sizes, PSWA(), 2)
    weights = [w.clone() for w in psw.tensors]
    psw.step()
    for w in psw.tensors:
        w.data.mul_(3)
    with Temporaries() as temporaries:
        done = psw.step()
    assert temporaries.most <= (1 << 25) + 8  # a slice is rounded up
    moved = sum(w.numel() for w in weights)  # from 3 to 2
    assert done.shift == pytest.approx((moved / (9 * moved))**0.5, rel=1e-6)


def test_no_sample_is_taken_of_the_average():
    """The live weights are then where the next samples would go."""
    psw = resampler([2], PSWA(), 2, write_back=False)
    psw.step()
    psw.step()
    with psw.averaged(), pytest.raises(ValueError, match='inside of averag'):
        psw.step()
    psw.step()

"""The kernel of gradient pruning against loops over arrays.

    TRITON_INTERPRET=1 python tests/pruning_kernel.py

runs it on a CPU, by Triton's interpreter.
"""
import numpy as np
import torch

from mmpsw.methods.gradient_pruning.kernel import BLOCK, KernelPruner

SEED = 0x9abcdef0
TAU = 0.7


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011, figure 2): (4, n) and (2, )."""
    c = counter.astype(np.uint64)
    k = np.array(key, dtype=np.uint64)
    low = np.uint64(0xffffffff)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xd2511f53), c[2] * np.uint64(0xcd9e8d57)
        c = np.stack([b >> np.uint64(32) ^ c[1] ^ k[0], b & low,
                      a >> np.uint64(32) ^ c[3] ^ k[1], a & low])
        k = k + np.array([0x9e3779b9, 0xbb67ae85], dtype=np.uint64) & low
    return c.astype(np.uint32)


def draws(count, call):
    """In [0, 1): a counter for each four blocks' lane."""
    lanes = -(-count // (4 * BLOCK)) * BLOCK
    counter = np.zeros((4, lanes), np.uint32)
    counter[0] = np.arange(lanes)
    bits = philox(counter, (SEED, call)).view(np.int32).astype(np.int64)
    unit = np.where(bits < 0, -bits - 1, bits).astype(np.float32) * np.float32(
        4.6566127342e-10)
    return unit.reshape(4, -1, BLOCK).transpose(1, 0, 2).ravel()[:count]


def expected(grad, tau, call):
    """A gradient, as it lies in the memory, number by number."""
    g, tau = grad.float().numpy(), np.float32(tau)
    u = draws(len(g), call)
    lifted = np.where(np.abs(g) < tau, np.copysign(tau, g), g)
    return np.where(np.abs(g) <= u * tau, 0, lifted)


def check(device):
    """A known answer, then all that a backward pass may hand over."""
    zero = np.zeros((4, 1), np.uint32)
    assert [hex(x) for x in philox(zero, (0, 0))[:, 0]] == [
        '0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(shape, generator=generator).to(dtype)
             for shape in ((5, ), (3, 8, 9, 7), (2, 40, 33, 31))
             for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    grads[3].view(-1)[:3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    grads.append(grads[3].contiguous(memory_format=torch.channels_last))
    pruner = KernelPruner(len(grads), torch.device(device))
    pruner.begin(SEED)
    for call, grad in enumerate(grads, 1):
        before = grad.clone()
        found = pruner.prune(grad.to(device), TAU, call - 1, call % 2 == 0)
        assert found.dtype == grad.dtype and torch.equal(
            before.nan_to_num(), grad.nan_to_num())
        assert found.stride() == grad.stride()
        order = sorted(range(grad.dim()), key=lambda d: -grad.stride(d))
        flat, found = (x.cpu().permute(order).flatten()
                       for x in (grad, found))
        tau = torch.tensor(TAU, dtype=grad.dtype).item()
        want = torch.from_numpy(expected(flat, tau, call)).to(grad.dtype)
        np.testing.assert_array_equal(found.float(), want.float())
        sizes, zeros = pruner.take()[call - 1].tolist()
        np.testing.assert_allclose(sizes, flat.double().abs().sum(),
                                   rtol=1e-5)
        assert zeros == (want == 0).sum() * (call % 2 == 0)
    # Nothing is pruned at a tau of 0; an expanded gradient has its draws.
    grad = grads[6].to(device)
    assert pruner.prune(grad, 0., 1, True) is grad
    pruner.count(torch.zeros(7, device=device).expand(3, 7), 2)
    sums = pruner.take()
    assert sums[1, 0] > 0 and sums[1, 1] == 0 and sums[2].tolist() == [0, 21]
    same = torch.ones((), device=device).expand(1000)
    assert 400 < pruner.prune(same, 2., 0, False).count_nonzero() < 600
    assert not pruner.take()[1:].any() and not pruner.take().any()


if __name__ == '__main__':
    check('cpu')

"""Pruning by one Triton kernel a gradient, to import where there is a GPU."""
import torch
import triton
import triton.language as tl
from torch import Tensor

from .pruning import rounded

__all__ = ['KernelPruner']

# Each program adds to a sum of its own, so that the order of the sums, and
# with it the last bit of tau, is always the same.
PROGRAMS = 1024
BLOCK = 512


class KernelPruner:
    """What :class:`.pruning.Pruner` does, with draws by Philox.

    Philox4x32-10 has the iteration's seed and the number of the call for its
    key; its counter c gives the draws of 4 blocks of numbers, as they lie in
    the memory. All is a function of these, whatever the device.
    """

    def __init__(self, layers: int, device: torch.device):
        self.table = torch.zeros(layers, 2, PROGRAMS, device=device)
        self.rows = list(self.table)
        self.key = 0

    def begin(self, seed: int) -> None:
        """Begin an iteration's draws, by a seed of 32 bits."""
        self.key = seed

    def prune(self, grad: Tensor, tau: float, layer: int,
              zeros: bool) -> Tensor:
        """Prunes; adds ``|grad|``, and what is zero then if asked."""
        tau = rounded(tau, grad.dtype)
        return self._launch(grad, layer, tau, tau > 0, True, zeros)

    def count(self, grad: Tensor, layer: int) -> None:
        """Adds the number of zeros."""
        self._launch(grad, layer, 0., False, False, True)

    def take(self) -> Tensor:
        """The sums of ``|grad|`` and of zeros, (layers, 2), since last."""
        sums = self.table.sum(2)
        self.table.zero_()
        return sums

    def _launch(self, grad: Tensor, layer: int, tau: float, pruned: bool,
                sizes: bool, zeros: bool) -> Tensor:
        out = torch.empty_like(grad)
        if out.stride() != grad.stride():  # expanded, or with gaps
            grad = out.copy_(grad)
        if not pruned:
            out = grad
        blocks = triton.cdiv(grad.numel(), 4 * BLOCK)
        self.key += pruned << 32
        _kernel[min(blocks, PROGRAMS), ](
            grad, out, self.rows[layer], tau, self.key, grad.numel(), pruned,
            sizes, zeros, PROGRAMS, BLOCK)
        return out


@triton.jit(do_not_specialize=['key'])
def _kernel(grad, out, row, tau, key: 'u64', count,  # noqa: F821
            pruned: tl.constexpr, sizes: tl.constexpr, zeros: tl.constexpr,
            programs: tl.constexpr, block: tl.constexpr):
    program = tl.program_id(0)
    size_sum = tl.zeros([block], tl.float32)
    zero_sum = tl.zeros([block], tl.float32)
    tile = program.to(tl.int64)
    while tile * 4 * block < count:
        if pruned:
            draws = tl.rand4x(key, tile * block + tl.arange(0, block))
        else:
            draws = (0., 0., 0., 0.)
        for part in tl.static_range(4):
            place = (tile * 4 + part) * block + tl.arange(0, block)
            inside = place < count
            g = tl.load(grad + place, mask=inside, other=0.)
            size = tl.abs(g.to(tl.float32))
            if sizes:
                size_sum += size
            if pruned:
                # What is not finite stays: no comparison holds for it.
                lifted = tl.where(g < 0, -tau, tau).to(g.dtype)
                g = tl.where(size < tau, lifted, g)
                g = tl.where(size <= draws[part] * tau, 0., g).to(g.dtype)
                tl.store(out + place, g, mask=inside)
            if zeros:
                zero_sum += tl.where(inside & (g == 0), 1., 0.)
        tile += tl.num_programs(0)
    if sizes:
        slot = row + program
        tl.store(slot, tl.load(slot) + tl.sum(size_sum))
    if zeros:
        slot = row + programs + program
        tl.store(slot, tl.load(slot) + tl.sum(zero_sum))

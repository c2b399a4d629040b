"""An experiment: the sample inside of the optimizer's own pass.

The optimizer has w at hand when it writes it, so that a sample within the same
pass reads mu and writes mu: 8 bytes a parameter instead of 12.
"""
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from mmpsw.methods.averaging import RunningMean

from .sampling import synthetic
from .steps import BASELINE, Step
from .timing import Spread, interleaved, ratios

__all__ = ['measure', 'updated_and_sampled']

LR, MOMENTUM = 1e-6, 0.9


def measure(elements: int, tensors: int, device: torch.device, repeats: int,
            track: Callable[[Sequence, str], Iterable]) -> list[Step]:
    """Time updates of SGD with momentum, and ways to sample after them.

    Args:
        elements (int): fp32 parameters, all together.
        tensors (int): In so many tensors.
        device (torch.device): Where they are.
        repeats (int): Rounds in which each is timed once.
        track (Callable): Goes through the rounds, and shows progress.

    Returns:
        List[Step]: The update without a sample, then the others.
    """
    shape = (elements, tensors, device)
    arms = {
        BASELINE: _update(*_model(*shape)),
        'then a sample': _then_sampled(*_model(*shape)),
        'SGD(fused=True)': _update(*_model(*shape, fused=True)),
        'SGD(fused=True), then a sample': _then_sampled(
            *_model(*shape, fused=True)),
        'torch.compile of both': _compiled(*_model(*shape)),
    }
    rounds = track(range(repeats), f'{elements:.3g} in {tensors} tensors')
    times = interleaved(arms, rounds, device)
    return [
        Step(name, Spread.of(values), ratios(values, times[BASELINE]))
        for name, values in times.items()
    ]


def updated_and_sampled(params: list[Tensor], grads: list[Tensor],
                        buffers: list[Tensor], means: list[Tensor],
                        weight: Tensor) -> None:
    """One update of SGD with momentum and one sample, in place.

    What torch.compile makes one pass of.
    """
    for w, grad, buffer, mu in zip(params, grads, buffers, means):
        velocity = MOMENTUM * buffer + grad
        updated = w - LR * velocity
        buffer.copy_(velocity)
        w.copy_(updated)
        mu.copy_(mu + weight * (updated - mu))


def _model(
        elements: int, tensors: int, device: torch.device,
        fused: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = synthetic(elements, tensors, torch.float32, device)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LR, momentum=MOMENTUM, fused=fused,
        foreach=not fused)
    optimizer.step()
    return model, optimizer


def _update(model: nn.Module,
            optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    return lambda: optimizer.step()


def _then_sampled(model: nn.Module,
                  optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    running = RunningMean(list(model.parameters()))

    def step() -> None:
        optimizer.step()
        running.update()

    return step


def _compiled(model: nn.Module,
              optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    params = [param.detach() for param in model.parameters()]
    grads = [param.grad for param in model.parameters()]
    buffers = [state['momentum_buffer'] for state in optimizer.state.values()]
    means = [param.clone() for param in params]
    samples = 1
    compiled = torch.compile(updated_and_sampled)

    def step() -> None:
        nonlocal samples
        samples += 1
        compiled(params, grads, buffers, means,
                 torch.tensor(1 / samples, device=params[0].device))

    return step

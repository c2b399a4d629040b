"""Why PSW does not train under FlexibleRunner and its strategies."""
from typing import Any

__all__ = ['check_runner', 'refuse_flexible_runner']

_REASONS = {
    'FSDPStrategy':
    'its FSDP.optim_state_dict keeps only state and param_groups of the '
    "optimizer's state, so that every checkpoint would lose the average, and "
    'each process, which sees only its shards, would decide for itself '
    'whether a mean is finite',
    'DeepSpeedStrategy':
    "DeepSpeed's engine takes the updates over: ZeRO updates 32-bit "
    'partitions of its own and copies them over what is written back, and '
    'DeepSpeedOptimWrapper saves nothing of the optimizer',
    'ColossalAIStrategy':
    "ColossalAI's booster replaces the optimizer, and may shard its weights, "
    'after PSW has looked at them',
}
_ITS_ORDER = ('it loads a checkpoint before it tells any hook that the run '
              'begins, when the averaging has no place for its state yet')


def refuse_flexible_runner(strategy: str) -> ValueError:
    """The error for a FlexibleRunner with this class of strategy."""
    what = f'FlexibleRunner with {strategy}'
    return _refusal(what, _REASONS.get(strategy, _ITS_ORDER))


def check_runner(runner: Any) -> None:
    """Refuse what shards the weights, or loads them otherwise than Runner.

    Raises:
        ValueError: The runner is a FlexibleRunner, or its model is wrapped in
            FullyShardedDataParallel.
    """
    strategy = getattr(runner, 'strategy', None)
    if strategy is not None:
        raise refuse_flexible_runner(type(strategy).__name__)
    model = type(getattr(runner, 'model', None)).__name__
    if 'FullyShardedDataParallel' in model:
        raise _refusal(
            model, 'each process sees only its shards of the weights, and '
            'would decide for itself whether a mean is finite, and Runner '
            "saves the first process's alone")


def _refusal(what: str, reason: str) -> ValueError:
    return ValueError(
        f'PSW cannot be used with {what}, because {reason}: use Runner, on '
        'one device or with distributed data parallel, or train without psw.')

"""Into how many micro-batches a batch of pipelined backprop can go."""

from __future__ import annotations

from dglpipe.config import BackpropConfig, Config
from dglpipe.data.batch_schedule import StreamPlan
from dglpipe.errors import ConfigError
from dglpipe.pipeline.topology import Layout


def check_microbatches(config: Config, layout: Layout, plan: StreamPlan) -> None:
    """Raises ConfigError for settings that a pipeline of backprop cannot have."""
    method = config.method
    if not layout.is_pipelined or not isinstance(method, BackpropConfig):
        return
    m, key = method.microbatches, "method.microbatches"
    name = method.schedule or "1f1b"
    if plan.batch_size % m or plan.batch_size // m < 2:
        allowed = f"a number that divides batch_size={plan.batch_size} into parts of 2 or more"
        raise ConfigError(key, m, allowed)
    if not fits(name, m, layout):
        least = {"1f1b": f"{layout.stages} or more, the stages"}
        allowed = least.get(name, f"a multiple of {layout.processes}, the processes")
        raise ConfigError(key, m, f"{allowed}, for method.schedule={name}")
    for j in range(layout.stages):
        if config.stage(j).precision.name == "fp16":
            hint = "The library scales no losses"
            raise ConfigError("precision", "fp16", "fp32 or bf16 in a pipeline of backprop", hint)


def fits(schedule: str, m: int, layout: Layout) -> bool:
    """Whether a schedule of `torch.distributed.pipelining` takes `m` micro-batches."""
    if schedule == "1f1b":
        return m >= layout.stages
    if schedule == "interleaved_1f1b":
        return m % layout.processes == 0
    return True

"""What a run will take, stage by stage, known before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from dglpipe.blueprint import Blueprint
from dglpipe.config import BackpropConfig, MethodConfig
from dglpipe.flops import saved_bytes
from dglpipe.memory import optimizer_state
from dglpipe.topology import Layout


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """One stage with its head.

    Attributes:
        segments: names.
        parameters: of the segments; `head_parameters` of the head.
        flops_per_sample: forward and backward, head included; `head_flops_per_sample` is the
            head's part. A multiply-add is 2.
        output_shape: of a row on the link; None for the last stage.
        link_bytes_per_sample: of such a row; 0 for the last stage.
        seconds_per_step: as measured; None where the cost is FLOPs.
        weight_bytes: of parameters, their gradients and buffers.
        optimizer_bytes: of its state.
        activation_bytes: what a step keeps for backward, and the buffers of the links.
        buffer_bytes: those of the links alone, a replay buffer among them.
    """

    stage: int
    segments: tuple[str, ...]
    parameters: int
    head_parameters: int
    flops_per_sample: int
    head_flops_per_sample: int
    output_shape: tuple[int, ...] | None
    link_bytes_per_sample: int
    seconds_per_step: float | None
    weight_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    buffer_bytes: int

    @property
    def memory_bytes(self) -> int:
        """All three; a process starts at some hundred megabytes of libraries besides."""
        return self.weight_bytes + self.optimizer_bytes + self.activation_bytes


def estimate(
    blueprint: Blueprint, rows: int, seconds: Sequence[float] | None = None
) -> list[StageEstimate]:
    """Every stage.

    Args:
        blueprint: drawn on meta.
        rows: of a step on one replica.
        seconds: of a step, by stage, where they have been measured.
    """
    return [
        _stage(blueprint, j, rows, None if seconds is None else seconds[j])
        for j in range(len(blueprint.modules))
    ]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will take, and how fast it can be where links cost nothing.

    Attributes:
        rows: of a step on one replica.
        speed_up: of the processes over one process for all stages, without replicas: sum /
            busiest, in seconds where they have been measured, else in FLOPs.
        samples_per_second: of all replicas; None where seconds have not been measured. The
            slower of stages and loader, as if they worked at the same time: images held in
            memory are prepared by the process of stage 0, which this leaves out.
        loading_seconds: in which the loader of a replica makes a batch; None as above.
    """

    stages: tuple[StageEstimate, ...]
    rows: int
    speed_up: float
    samples_per_second: float | None
    loading_seconds: float | None = None


def predict(
    stages: Sequence[StageEstimate],
    rows: int,
    layout: Layout,
    method: MethodConfig,
    loading: float | None = None,
) -> Plan:
    """The plan of `stages` on the processes of `layout`.

    Args:
        loading: seconds in which the loader makes a batch, where they have been measured.
    """
    work = [stage.seconds_per_step or float(stage.flops_per_sample) for stage in stages]
    processes = range(layout.processes)
    busiest = max(sum(work[j] for j in layout.at(rank).stages) for rank in processes)
    busiest /= _filled(layout, method)
    timed = stages[0].seconds_per_step is not None
    return Plan(
        stages=tuple(stages),
        rows=rows,
        speed_up=sum(work) / (busiest or 1.0),
        samples_per_second=rows * layout.replicas / max(busiest, loading or 0) if timed else None,
        loading_seconds=loading,
    )


def _filled(layout: Layout, method: MethodConfig) -> float:
    """Share of a step in which the busiest process of a pipeline can work.

    Local learning has no bubbles. GPipe and 1F1B: m / (m + P - 1) (Huang et al., 2019);
    v stages a process, interleaved: m / (m + (P - 1) / v) (Narayanan et al., 2021); ZBV has
    none where forward and both parts of backward take the same time (Qi et al., 2024).
    """
    if not isinstance(method, BackpropConfig) or not layout.is_pipelined:
        return 1.0
    each = layout.stages / layout.processes
    idle = 0.0 if layout.placement == "v" else (layout.processes - 1) / each
    return method.microbatches / (method.microbatches + idle)


def _stage(blueprint: Blueprint, j: int, rows: int, seconds: float | None) -> StageEstimate:
    last = j == len(blueprint.modules) - 1
    learner = blueprint.learner(j)
    own, head = _count(learner.segments), _count(learner.head) if learner.head else 0
    shape = blueprint.input_shape(j)
    whole = nn.Sequential(learner.segments, *filter(None, [learner.head]))
    head_flops = blueprint.head_flops(j, learner.head)
    item_bytes = blueprint.config.stage(j).precision.item_bytes
    buffers = _buffers(blueprint, j)
    activations = saved_bytes(whole, shape) * item_bytes // 4
    return StageEstimate(
        stage=j,
        segments=blueprint.segments[j],
        parameters=own,
        head_parameters=head,
        flops_per_sample=blueprint.own_flops(j) + head_flops,
        head_flops_per_sample=head_flops,
        output_shape=None if last else blueprint.fields[j].shape,
        link_bytes_per_sample=0 if last else blueprint.fields[j].row_bytes,
        seconds_per_step=seconds,
        weight_bytes=2 * 4 * (own + head) + sum(b.nbytes for b in whole.buffers()),
        optimizer_bytes=4 * (own + head) * optimizer_state(blueprint.config.stage(j).optimizer),
        activation_bytes=rows * (activations + buffers),
        buffer_bytes=rows * buffers,
    )


def _buffers(blueprint: Blueprint, j: int) -> int:
    """Bytes a sample of what a stage has received and has yet to send."""
    method, depth, bytes_ = blueprint.config.method, blueprint.config.pipeline.depth, 0
    if j:
        below = blueprint.fields[j - 1]
        bytes_ = method.receives(j - 1, depth, below.row_bytes, below.dtype.itemsize)
    if j < len(blueprint.fields):
        bytes_ += method.sends(j, depth) * blueprint.fields[j].row_bytes
    return bytes_


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

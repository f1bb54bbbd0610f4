"""What a run will take, stage by stage, known before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from dglpipe.partition.flops import saved_bytes
from dglpipe.partition.memory import optimizer_state
from dglpipe.partition.pipeline_spec import PipelineSpec


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
    spec: PipelineSpec, rows: int, seconds: Sequence[float] | None = None
) -> list[StageEstimate]:
    """Every stage.

    Args:
        spec: drawn on meta.
        rows: of a step on one replica.
        seconds: of a step, by stage, where they have been measured.
    """
    return [
        _stage(spec, j, rows, None if seconds is None else seconds[j])
        for j in range(len(spec.modules))
    ]


def _stage(spec: PipelineSpec, j: int, rows: int, seconds: float | None) -> StageEstimate:
    last = j == len(spec.modules) - 1
    learner = spec.learner(j)
    own, head = _count(learner.segments), _count(learner.head) if learner.head else 0
    shape = spec.input_shape(j)
    whole = nn.Sequential(learner.segments, *filter(None, [learner.head]))
    head_flops = spec.head_flops(j, learner.head)
    item_bytes = spec.config.stage(j).precision.item_bytes
    buffers = _buffers(spec, j)
    activations = saved_bytes(whole, shape) * item_bytes // 4
    held = spec.config.method.held(j, len(spec.modules))
    return StageEstimate(
        stage=j,
        segments=spec.segments[j],
        parameters=own,
        head_parameters=head,
        flops_per_sample=spec.own_flops(j) + head_flops,
        head_flops_per_sample=head_flops,
        output_shape=None if last else spec.fields[j].shape,
        link_bytes_per_sample=0 if last else spec.fields[j].row_bytes,
        seconds_per_step=seconds,
        weight_bytes=2 * 4 * (own + head) + sum(b.nbytes for b in whole.buffers()),
        optimizer_bytes=4 * (own + head) * optimizer_state(spec.config.stage(j).optimizer),
        activation_bytes=int(rows * activations * held) + rows * buffers,
        buffer_bytes=rows * buffers,
    )


def _buffers(spec: PipelineSpec, j: int) -> int:
    """Bytes a sample of what a stage has received and has yet to send."""
    method, depth, bytes_ = spec.config.method, spec.config.pipeline.depth, 0
    if j:
        below = spec.fields[j - 1]
        bytes_ = method.receives(j - 1, depth, below.row_bytes, below.dtype.itemsize)
    if j < len(spec.fields):
        bytes_ += method.sends(j, depth) * spec.fields[j].row_bytes
    return bytes_


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

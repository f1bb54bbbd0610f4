"""FLOPs, memory and traffic of every stage, before the run starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from dglpipe.partition.memory import MemoryNeeds
from dglpipe.partition.staged_network import StagedNetwork


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """One stage with its auxiliary modules.

    Attributes:
        segments: names of the segments.
        parameters: number of parameters of the segments.
        head_parameters: number of parameters of the auxiliary modules.
        flops_per_sample: FLOPs of forward and backward, with auxiliary modules; a multiply-add is
            2.
        head_flops_per_sample: FLOPs of the auxiliary modules only.
        output_shape: shape of one row on the link; None for the last stage.
        link_bytes_per_sample: bytes of one row on the link; 0 for the last stage.
        down_bytes_per_sample: bytes that go down to the stage below, for each row of a step; 0:
            nothing does.
        delay: steps between the step that a message from above is about and the step that uses it;
            None: no message comes down.
        seconds_per_step: measured time; None if the cost is FLOPs.
        weight_bytes: parameters, their gradients, and buffers of modules.
        optimizer_bytes: state of the optimizer.
        activation_bytes: tensors that a step saves for backward, and buffers of the links.
        buffer_bytes: buffers of the links only, including stored batches.
    """

    stage: int
    segments: tuple[str, ...]
    parameters: int
    head_parameters: int
    flops_per_sample: int
    head_flops_per_sample: int
    output_shape: tuple[int, ...] | None
    link_bytes_per_sample: int
    down_bytes_per_sample: int
    delay: int | None
    seconds_per_step: float | None
    weight_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    buffer_bytes: int

    @property
    def memory_bytes(self) -> int:
        """Bytes of the stage, without the libraries of the process (some hundred megabytes)."""
        return self.weight_bytes + self.optimizer_bytes + self.activation_bytes


def estimate(
    network: StagedNetwork, rows: int, seconds: Sequence[float] | None = None
) -> list[StageEstimate]:
    """Estimates every stage.

    Args:
        network: the network on meta.
        rows: rows per step on one replica.
        seconds: seconds per step by stage; None: not measured.
    """
    needs = network.require_problem().memory_needs(rows)
    return [
        _estimate_stage(network, j, needs[j], rows, None if seconds is None else seconds[j])
        for j in range(network.spec.stages)
    ]


def _estimate_stage(
    network: StagedNetwork, j: int, needs: MemoryNeeds, rows: int, seconds: float | None
) -> StageEstimate:
    spec = network.spec
    is_last = j == spec.stages - 1
    memory = needs.stage(*spec.span(j))
    auxiliary_flops = network.auxiliary_flops(j)
    extras = 0 if is_last else network.method.extra_bytes(j, spec)
    return StageEstimate(
        stage=j,
        segments=spec.segments[j],
        parameters=_count(network.modules[j]),
        head_parameters=sum(map(_count, network.auxiliary(j).values())),
        flops_per_sample=network.segment_flops(j) + auxiliary_flops,
        head_flops_per_sample=auxiliary_flops,
        output_shape=None if is_last else spec.fields[j].shape,
        link_bytes_per_sample=spec.row_bytes(j) + extras,
        down_bytes_per_sample=network.method.down_bytes(j - 1, spec, rows) if j else 0,
        delay=network.method.delay(j, spec.stages),
        seconds_per_step=seconds,
        weight_bytes=memory.weights,
        optimizer_bytes=memory.optimizer,
        activation_bytes=memory.activations + memory.buffers,
        buffer_bytes=memory.buffers,
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

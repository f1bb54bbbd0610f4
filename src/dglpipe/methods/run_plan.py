"""The plan of a run: everything that is known before the run starts, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from dglpipe.config import Config
from dglpipe.data import DataInfo
from dglpipe.data.batch_schedule import BatchSchedule, Phase
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.pipeline.message import (
    ACTIVATIONS,
    ENSEMBLE,
    LABELS,
    Direction,
    Field,
    MessageFormats,
    message_formats,
)
from dglpipe.pipeline.topology import Layout

OWN_FIELDS = (LABELS, ENSEMBLE, ACTIVATIONS)
"""Names of the tensors that a runner fills itself. The others are extras of the method."""


@dataclass(frozen=True)
class RunPlan:
    """Everything about a run that is known before it starts. A value: it is made once, passed
    down and never changed.

    Attributes:
        config: the resolved configuration.
        data: sizes and classes of the data set.
        layout: stages, processes, replicas and threads.
        schedule: the order of the batches.
        backend: `gloo` or `nccl`.
        spec: the cut of the network, and what crosses it.
        messages: the declared tensors of each link, by the stage below.
        flops: forward and backward of every stage with its auxiliary modules, for one sample.
    """

    config: Config
    data: DataInfo
    layout: Layout
    schedule: BatchSchedule
    backend: str
    spec: PipelineSpec
    messages: tuple[tuple[Field, ...], ...]
    flops: tuple[int, ...]

    def formats(self, link: int, direction: Direction = Direction.UP) -> MessageFormats:
        """The formats of the messages of a link in one direction."""
        rows = {phase: self.schedule.largest_rows(phase) for phase in Phase}
        return message_formats(self.messages[link], rows, direction)

    def extras(self, link: int, direction: Direction = Direction.UP) -> tuple[Field, ...]:
        """The declared tensors of a link that the method fills itself; none above the last."""
        return self._extras.get((link, direction), ())

    @cached_property
    def _extras(self) -> dict[tuple[int, Direction], tuple[Field, ...]]:
        return {
            (link, direction): tuple(
                one for one in fields if one.direction is direction and one.name not in OWN_FIELDS
            )
            for link, fields in enumerate(self.messages)
            for direction in Direction
        }

    def activations(self) -> dict[int, Field]:
        """The activations that each stage but the last sends, by stage."""
        return dict(enumerate(self.spec.fields))

    def row_bytes(self, stage: int) -> int:
        """Bytes of one row that `stage` sends in training, without the label; 0 for the last."""
        extras = (one for one in self.extras(stage) if Phase.TRAIN in one.phases)
        return self.spec.row_bytes(stage) + sum(one.row_bytes for one in extras)

"""The plan of a run: everything that is known before the run starts, in one frozen dataclass."""

from __future__ import annotations

from collections.abc import Iterable
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
"""Names of the tensors that a runner fills. All other tensors are extras, filled by the method."""


def extra_row_bytes(fields: Iterable[Field]) -> int:
    """Bytes per row of the extra tensors among `fields` that go up in training."""
    return sum(
        one.row_bytes
        for one in fields
        if one.name not in OWN_FIELDS
        and one.direction is Direction.UP
        and Phase.TRAIN in one.phases
    )


def down_row_bytes(fields: Iterable[Field], rows: int) -> int:
    """Bytes per row of the tensors among `fields` that go down. Tensors with one row in all count
    as their share of each row of a batch, on average over the steps.

    Args:
        rows: rows of a batch.
    """
    return sum(
        one.row_bytes if one.every is None else -(-one.row_bytes // (one.every * rows))
        for one in fields
        if one.direction is Direction.DOWN
    )


@dataclass(frozen=True)
class RunPlan:
    """Everything that is known about a run before the run starts. Built once and never modified.

    Attributes:
        config: the resolved configuration.
        data: sizes and classes of the data set.
        layout: stages, processes, replicas and threads.
        schedule: the order of the batches.
        backend: `gloo` or `nccl`.
        spec: the cut of the network, and the tensors that cross it.
        messages: entry j: the declared tensors of the link from stage j to stage j + 1.
        flops: FLOPs per sample of forward and backward, by stage, with auxiliary modules.
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
        """The tensors of a link that the method fills; empty above the last stage."""
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

    @property
    def sends_down(self) -> bool:
        """Whether messages also go down the chain."""
        declared = (field for fields in self.messages for field in fields)
        return any(field.direction is Direction.DOWN for field in declared)

    def activations(self) -> dict[int, Field]:
        """Stage -> activations that the stage sends, for every stage except the last."""
        return dict(enumerate(self.spec.fields))

    def row_bytes(self, stage: int) -> int:
        """Bytes per row that `stage` sends up in training, without labels; 0 for the last stage."""
        return self.spec.row_bytes(stage) + extra_row_bytes(self.extras(stage))

    def row_bytes_down(self, stage: int) -> int:
        """Bytes per row that `stage` sends to the stage below; 0 for stage 0."""
        rows = self.schedule.largest_rows(Phase.TRAIN)
        return down_row_bytes(self.extras(stage - 1, Direction.DOWN), rows)

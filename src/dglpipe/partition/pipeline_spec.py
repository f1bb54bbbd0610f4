"""The cut of a network into stages, and the tensors that cross it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dglpipe.config import AnyHeadConfig
from dglpipe.data.batch_schedule import BatchSchedule, Phase
from dglpipe.models.features import Boundary, Features, Following, Layer, SegmentForm
from dglpipe.pipeline.message import (
    ACTIVATIONS,
    ENSEMBLE,
    LABELS,
    Field,
    MessageFormat,
    contiguous_field,
)


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """The stages of a run, without modules: frozen and picklable.

    Attributes:
        bounds: first segment of every stage.
        segments: names of the segments, by stage.
        fields: format of the activations that each stage except the last sends.
        channels_at: for each field, the dimension of a row that holds the channels.
        reads: for each field, the shape of one row in front of the pools at the end of the stage,
            if the auxiliary modules read it; None: they read the output.
        image_shape: shape of one image, (C,H,W).
        classes: N.
        width: channels of the network's last map; see `Boundary`.
        layers: the form of every segment; see `Boundary.above`.
        following: for each field, the form of the first segment above the cut; None if this is
            nothing but the classifier.
    """

    bounds: tuple[int, ...]
    segments: tuple[tuple[str, ...], ...]
    fields: tuple[Field, ...]
    channels_at: tuple[int, ...]
    reads: tuple[tuple[int, ...] | None, ...]
    image_shape: tuple[int, int, int]
    classes: int
    width: int | None
    layers: tuple[Layer, ...]
    following: tuple[SegmentForm | None, ...]

    @property
    def stages(self) -> int:
        """K."""
        return len(self.bounds)

    def span(self, j: int) -> tuple[int, int]:
        """First segment of stage `j`, and the first segment above it."""
        return self.bounds[j], self.bounds[j] + len(self.segments[j])

    def features(self, j: int) -> Features:
        """What the auxiliary modules of stage `j` read; not for the last stage."""
        return Features(self.read_row(j), self.channels_at[j])

    def read_row(self, j: int) -> tuple[int, ...]:
        """Shape of one row of `features`."""
        return self.reads[j] or self.fields[j].shape

    def read_hint(self, j: int) -> str:
        """What to do if an auxiliary module of stage `j` does not work on `features`."""
        if self.reads[j] is None:
            return ""
        return f"With head.reads=output it reads the pooled map {self.fields[j].shape}"

    def boundary(self, j: int, head: AnyHeadConfig, segment: nn.Module | None = None) -> Boundary:
        """The cut above stage `j`; not for the last stage.

        Args:
            head: head settings of stage `j`.
            segment: the first segment above the cut; see `Boundary.following`.
        """
        form = self.following[j]
        end = self.bounds[j + 1]
        return Boundary(
            self.features(j),
            self.classes,
            self.image_shape,
            head,
            end,
            self.width,
            j,
            self.stages,
            self.layers[end:],
            Following(segment, form) if segment is not None and form is not None else None,
        )

    def input_shape(self, j: int) -> tuple[int, ...]:
        """Shape of one input row of stage `j`."""
        return self.fields[j - 1].shape if j else self.image_shape

    def row_bytes(self, j: int) -> int:
        """Bytes per row of the activations that stage `j` sends; 0 for the last stage."""
        return self.fields[j].row_bytes if j < len(self.fields) else 0

    def label_layouts(self, plan: BatchSchedule) -> dict[Phase, MessageFormat]:
        """Formats of the messages of pipelined backprop, which contain only labels;
        torch.distributed.pipelining sends the activations."""
        labels = contiguous_field(LABELS, torch.int64, ())
        nothing = contiguous_field(ACTIVATIONS, torch.uint8, (0,))
        return {
            phase: MessageFormat(plan.largest_rows(phase), (labels, nothing)) for phase in Phase
        }

    def layouts(self, j: int, plan: BatchSchedule) -> dict[Phase, MessageFormat]:
        """Formats of the messages from stage `j` to stage `j + 1`."""
        labels = contiguous_field(LABELS, torch.int64, ())
        ensemble = contiguous_field(ENSEMBLE, torch.float32, (self.classes,))
        activations = self.fields[j]
        rows = {phase: plan.largest_rows(phase) for phase in Phase}
        return {
            Phase.TRAIN: MessageFormat(rows[Phase.TRAIN], (labels, activations)),
            Phase.TEST: MessageFormat(rows[Phase.TEST], (labels, ensemble, activations)),
        }

"""The parts of a method that the partition uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Protocol

from torch import nn

from dglpipe.models.features import Boundary
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.pipeline.link import LinkBuffers, Stash
from dglpipe.pipeline.topology import Layout


class StageMethod(Protocol):
    """The properties of a method that determine costs, memory and modules of the stages."""

    @property
    def flows_back(self) -> bool:
        """Whether the stages above the first compute the gradient of their input (backprop)."""

    def reads_output(self, stage: int) -> bool:
        """Whether the auxiliary modules of `stage` read its output for every `head.reads`."""

    @property
    def replays_forward(self) -> bool:
        """Whether a stage runs the forward of every batch twice."""

    @property
    def watches_branches(self) -> bool:
        """Whether a stage measures its residual branches in training."""

    def auxiliary_kind(self, stage: int) -> str:
        """Equal for stages whose auxiliary modules are equal at equal cuts, for equal head
        settings."""

    def copies_following(self, stage: int) -> bool:
        """Whether the auxiliary modules of `stage` copy the first segment of the next stage."""

    def prepare(self, stage: int, segments: nn.Module) -> None:
        """Called once with the segments of every stage that is built."""

    def auxiliary(self, boundary: Boundary) -> Mapping[str, Callable[[], nn.Module]]:
        """Builders of the auxiliary modules of the stage below `boundary`, by name.

        The input of every auxiliary module is the features of the stage. `head` returns logits
        (B, N); a stage with a `head` is an exit. Not called for the last stage.
        """

    def delay(self, stage: int, stages: int) -> int | None:
        """Steps between the step that a message from above is about and the step in which `stage`
        uses it; None: no message comes down."""

    def stash(self, stage: int, stages: int) -> Stash:
        """What `stage` keeps of earlier batches."""

    def activation_share(self, stage: int, stages: int) -> Fraction:
        """Fraction of a batch whose activations `stage` keeps for backward at the same time."""

    def extra_bytes(self, link: int, spec: PipelineSpec) -> int:
        """Bytes per row of the extra tensors that stage `link` sends up in training."""

    def down_bytes(self, link: int, spec: PipelineSpec, rows: int) -> int:
        """Bytes per row that stage `link` + 1 sends down, with `rows` rows a step."""

    def most_extra_bytes(self, link: int) -> int:
        """Upper limit of the part of `extra_bytes` that local objectives need, for every cut."""

    def buffers(self, link: int, depth: int) -> LinkBuffers:
        """Memory of the link from stage `link` to the next stage.

        Args:
            depth: D.
        """


class ScheduledMethod(Protocol):
    """The properties of a method that determine the predicted throughput."""

    @property
    def trains_in_rounds(self) -> bool:
        """Whether round r trains only stage r, with the stages below frozen."""

    def utilization(self, layout: Layout) -> float:
        """Upper bound of the fraction of a step in which a process computes; 1: no bubbles."""

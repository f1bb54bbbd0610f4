"""What the partition needs to know of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Protocol

from torch import nn

from dglpipe.models.features import Boundary
from dglpipe.pipeline.link import LinkBuffers
from dglpipe.pipeline.topology import Layout


class StageMethod(Protocol):
    """A method, as far as costs, memory and modules of the stages depend on it."""

    @property
    def flows_back(self) -> bool:
        """Whether the stages above the first compute the gradient of their input (backprop)."""

    def auxiliary(self, boundary: Boundary) -> Mapping[str, Callable[[], nn.Module]]:
        """Builders of the auxiliary modules of the stage below `boundary`, by name.

        Every auxiliary module takes the features of the stage. `head` returns logits (B, N);
        a stage with a `head` is an exit. Not called for the last stage.
        """

    def activation_share(self, stage: int, stages: int) -> Fraction:
        """Share of a batch whose activations `stage` keeps for backward at a time."""

    def buffers(self, link: int, depth: int) -> LinkBuffers:
        """Memory of the link from stage `link` to the next stage.

        Args:
            depth: D.
        """


class ScheduledMethod(Protocol):
    """A method, as far as the predicted throughput depends on it."""

    @property
    def trains_in_rounds(self) -> bool:
        """Whether round r trains stage r alone, with the stages below it frozen."""

    def utilization(self, layout: Layout) -> float:
        """Largest share of a step in which a process can compute; 1 without a bubble."""

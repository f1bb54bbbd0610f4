"""What the partition needs to know of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from torch import nn

from dglpipe.config import SPARE, AsyncConfig, BackpropConfig, MethodConfig, SequentialConfig
from dglpipe.config.method import ITEM_BYTES
from dglpipe.models.features import Boundary
from dglpipe.models.heads import HEAD, head_on
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


@dataclass(frozen=True)
class ConfiguredMethod:
    """Adapter: a `StageMethod` and `ScheduledMethod` from the settings of `config.method`."""

    settings: MethodConfig

    @property
    def flows_back(self) -> bool:
        return not self.settings.local

    def auxiliary(self, boundary: Boundary) -> Mapping[str, Callable[[], nn.Module]]:
        if not self.settings.local:
            return {}
        return {HEAD: lambda: head_on(boundary.head, boundary.features, boundary.classes)}

    def activation_share(self, stage: int, stages: int) -> Fraction:
        return self.settings.held(stage, stages)

    def buffers(self, link: int, depth: int) -> LinkBuffers:
        settings = self.settings
        sender = settings.sends(link, depth)
        if not isinstance(settings, AsyncConfig):
            return LinkBuffers(sender, depth)
        if not settings.simulate and settings.policy_of(link) == "block":
            return LinkBuffers(sender, depth)
        item_bytes = settings.storage_precision and ITEM_BYTES[settings.storage_precision]
        spare = 0 if settings.simulate else SPARE
        return LinkBuffers(sender, spare, settings.buffer, item_bytes or None)

    @property
    def trains_in_rounds(self) -> bool:
        return isinstance(self.settings, SequentialConfig)

    def utilization(self, layout: Layout) -> float:
        """GPipe and 1F1B: m / (m + P - 1) (Huang et al., 2019); v stages a process,
        interleaved: m / (m + (P - 1) / v) (Narayanan et al., 2021). ZBV has no bubble where
        forward and both parts of backward take the same time (Qi et al., 2024)."""
        if not isinstance(self.settings, BackpropConfig) or not layout.is_pipelined:
            return 1.0
        each = layout.stages / layout.processes
        idle = 0.0 if layout.placement == "v" else (layout.processes - 1) / each
        return self.settings.microbatches / (self.settings.microbatches + idle)


def method_of(settings: MethodConfig) -> ConfiguredMethod:
    """The method that `settings` describe."""
    return ConfiguredMethod(settings)

"""The method: what the stages learn from, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dglpipe.config.build import plug_in
from dglpipe.config.checks import require_name, require_number
from dglpipe.config.plug_in import PlugInConfig


@dataclass(kw_only=True, slots=True)
class MethodConfig:
    """Decoupled greedy learning: every stage in every step, from its own head."""

    local: ClassVar[bool] = True
    """Whether every stage learns from a head of its own, and nothing flows back."""

    name: str = "dgl"
    loss: Any = "cross_entropy"
    """The loss of every exit: `cross_entropy`, or a plug-in (`target` and `args`)."""

    def __post_init__(self) -> None:
        if isinstance(self.loss, Mapping):
            self.loss = plug_in("method.loss", self.loss)
        elif not isinstance(self.loss, PlugInConfig):
            require_name("method.loss", self.loss, ("cross_entropy",))

    def rounds(self, stages: int) -> int:
        """How often `epochs` are gone through by a run of `stages` stages."""
        del stages
        return 1


@dataclass(kw_only=True, slots=True)
class SequentialConfig(MethodConfig):
    """Stage after stage, each for `epochs` epochs, the stages below it frozen."""

    name: str = "sequential"

    def rounds(self, stages: int) -> int:
        return stages


@dataclass(kw_only=True, slots=True)
class BackpropConfig(MethodConfig):
    """One loss behind the last stage, whose gradient flows back through all of them."""

    local: ClassVar[bool] = False

    name: str = "backprop"
    schedule: str | None = None
    """Of the micro-batches, where there is more than one stage: `gpipe`, `1f1b`,
    `interleaved_1f1b` (two stages a process or more) or `zbv` (two stages a process);
    null: 1f1b."""
    microbatches: int = 4
    """m: equal parts of a batch, where there is more than one stage."""

    def __post_init__(self) -> None:
        # `super()` needs the class as it was before slots were added.
        MethodConfig.__post_init__(self)
        if self.schedule is not None:
            require_name("method.schedule", self.schedule, tuple(PLACEMENTS))
        require_number("method.microbatches", self.microbatches, 1)


PLACEMENTS = {"gpipe": "line", "1f1b": "line", "interleaved_1f1b": "loop", "zbv": "v"}
"""The schedules of pipelined backprop, and how each places the stages on the processes."""
METHODS: dict[str, type[Any]] = {
    "dgl": MethodConfig,
    "sequential": SequentialConfig,
    "backprop": BackpropConfig,
}

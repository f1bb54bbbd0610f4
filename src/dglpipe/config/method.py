"""The method: what the stages learn from, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

from dglpipe.config.build import plug_in
from dglpipe.config.checks import require, require_name, require_number
from dglpipe.config.plugin import PluginConfig


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
        elif not isinstance(self.loss, PluginConfig):
            require_name("method.loss", self.loss, ("cross_entropy",))

    def rounds(self, stages: int) -> int:
        """How often `epochs` are gone through by a run of `stages` stages."""
        del stages
        return 1

    def held(self, stage: int, stages: int) -> Fraction:
        """Share of a batch whose activations `stage` keeps for backward at a time."""
        del stage, stages
        return Fraction(1)

    def receives(self, link: int | None, depth: int, row_bytes: int, item_bytes: int) -> int:
        """Bytes a row of the memory for what comes over a link.

        Args:
            link: the stage below it; None: of the link that takes most.
            depth: D.
            row_bytes: of a row on the link; `item_bytes` of one of its numbers.
        """
        del link, item_bytes
        return depth * row_bytes

    def sends(self, link: int | None, depth: int) -> int:
        """Messages for which the stage below a link has memory."""
        del link, depth
        return 1


READ_RULES = ("paper", "authors")
POLICIES = ("overwrite", "block")
STORAGES = ("device", "host")
ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
SPARE = 2
"""Messages more than M for which a link that overwrites has memory: one is on its way, and one is
learnt from although it has left the buffer."""


@dataclass(kw_only=True, slots=True)
class AsyncConfig(MethodConfig):
    """Decoupled greedy learning in which no stage waits for another: each learns from one of
    the last batches from below, as often as it comes to (Algorithm 2)."""

    name: str = "dgl_async"
    buffer: int = 10
    """M: whole batches that a stage keeps of those from below."""
    read_rule: str = "paper"
    """Which of them it learns from: of those read least often the newest (`paper`), or what
    the authors' code does (`authors`)."""
    max_reuse: int | None = None
    """How often it may learn from one batch; null: as often as the rule wants."""
    max_age: int | None = None
    """The oldest batch it may learn from, in later outputs of the stage below; null: any."""
    storage: str = "device"
    """Where the batches lie: on the stage's `device`, or in the memory of the `host`."""
    storage_precision: str | None = None
    """What they are kept in: `fp32`, `bf16`, `fp16`; null: as they came."""
    reset_optimizer: bool = False
    """Whether the optimizer starts afresh at each drop of the learning rate."""
    policy: Any = "overwrite"
    """Of a link: `overwrite` (a batch may be dropped for a newer one, none waits) or `block`
    (each is learnt from once, as in synchronous learning); one for all, or a list."""
    slowdown: list[float] = field(default_factory=list)
    """How many times slower each stage is than it could be; []: none is."""
    simulate: bool = False
    """Whether one process plays all stages, in an order that is drawn."""
    order: str = "random"
    """Of a simulation: `random`, or `sequential`: stage after stage, again and again."""
    warmup: bool = True
    """Whether a simulation begins with two turns of each stage."""

    def __post_init__(self) -> None:
        MethodConfig.__post_init__(self)
        require_number("method.buffer", self.buffer, 1)
        require_name("method.read_rule", self.read_rule, READ_RULES)
        if self.max_reuse is not None:
            require_number("method.max_reuse", self.max_reuse, 1)
        if self.max_age is not None:
            require_number("method.max_age", self.max_age, 0)
        require_name("method.storage", self.storage, STORAGES)
        if self.storage_precision is not None:
            require_name("method.storage_precision", self.storage_precision, tuple(ITEM_BYTES))
        require_name("method.order", self.order, ("random", "sequential"))
        self._check_policies()
        for factor in self.slowdown:
            require_number("method.slowdown", factor, 1)
        if not self.simulate:
            hint = "It is the order of a simulation: method.simulate=true"
            require(self.order == "random", "method.order", self.order, "random", hint)
            require(self.warmup, "method.warmup", self.warmup, "true", hint)

    def _check_policies(self) -> None:
        several = isinstance(self.policy, list)
        policies = self.policy if several else [self.policy]
        for policy in policies:
            require_name("method.policy", str(policy), POLICIES)
        if self.simulate and "block" in policies:
            hint = "One process has no links; method.order=sequential is in step"
            require(False, "method.policy", self.policy, "overwrite in a simulation", hint)
        for key in ("max_reuse", "max_age"):
            got = getattr(self, key)
            if got is not None and "block" in policies:
                hint = "Behind a link that blocks, every batch is learnt from once, in order"
                require(False, f"method.{key}", got, "null with method.policy=block", hint)

    def policy_of(self, link: int | None) -> str:
        """Of the link behind stage `link`; None: of the one that takes most memory."""
        if not isinstance(self.policy, list):
            return str(self.policy)
        if link is None:
            return max(map(str, self.policy), default="overwrite")
        return str(self.policy[link])

    def slowdown_of(self, stage: int) -> float:
        """S of `stage`."""
        return self.slowdown[stage] if self.slowdown else 1.0

    def check_stages(self, stages: int) -> None:
        """Raises ConfigError for settings of a stage or link that there is not."""
        if self.slowdown and len(self.slowdown) != stages:
            allowed = f"a list of {stages} factors, one a stage, or an empty one"
            require(False, "method.slowdown", self.slowdown, allowed)
        if isinstance(self.policy, list) and len(self.policy) != stages - 1:
            allowed = f"one for all links, or a list of {stages - 1}, one a link"
            require(False, "method.policy", self.policy, allowed)

    def receives(self, link: int | None, depth: int, row_bytes: int, item_bytes: int) -> int:
        if not self.simulate and self.policy_of(link) == "block":
            return depth * row_bytes
        kept_in = self.storage_precision and ITEM_BYTES[self.storage_precision]
        kept = self.buffer * row_bytes * (kept_in or item_bytes) // item_bytes
        return kept if self.simulate else kept + SPARE * row_bytes

    def sends(self, link: int | None, depth: int) -> int:
        if self.simulate:
            return 0
        return depth if self.policy_of(link) == "overwrite" else 1


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

    def held(self, stage: int, stages: int) -> Fraction:
        if stages == 1 or self.schedule not in (None, "1f1b"):
            return Fraction(1)
        # A stage has sent as many micro-batches ahead as there are stages from it to the last.
        return Fraction(min(self.microbatches, stages - stage), self.microbatches)


PLACEMENTS = {"gpipe": "line", "1f1b": "line", "interleaved_1f1b": "loop", "zbv": "v"}
"""The schedules of pipelined backprop, and how each places the stages on the processes."""
METHODS: dict[str, type[Any]] = {
    "dgl": MethodConfig,
    "dgl_async": AsyncConfig,
    "sequential": SequentialConfig,
    "backprop": BackpropConfig,
}

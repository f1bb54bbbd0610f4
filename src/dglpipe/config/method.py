"""Settings of the methods of learning. `dglpipe.methods` implements the methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dglpipe.config.build import plug_in
from dglpipe.config.checks import require, require_name, require_number
from dglpipe.config.plugin import PluginConfig


@dataclass(kw_only=True, slots=True)
class MethodConfig:
    """Decoupled greedy learning: every stage learns in every step, from its own head."""

    name: str = "dgl"
    loss: Any = "cross_entropy"
    """The loss of every exit: `cross_entropy`, or a plug-in (`target` and `args`)."""
    reset_optimizer: bool = False
    """Clear the optimizer state of a stage at each drop of its learning rate."""

    def __post_init__(self) -> None:
        if isinstance(self.loss, Mapping):
            self.loss = plug_in("method.loss", self.loss)
        elif not isinstance(self.loss, PluginConfig):
            require_name("method.loss", self.loss, ("cross_entropy",))


READ_RULES = ("paper", "authors")
POLICIES = ("overwrite", "block")
STORAGES = ("device", "host")


@dataclass(kw_only=True, slots=True)
class AsyncConfig(MethodConfig):
    """Asynchronous decoupled greedy learning (Algorithm 2): each stage learns from one of the last
    M batches of the stage below, without waiting for other stages."""

    name: str = "dgl_async"
    buffer: int = 10
    """M, the number of batches in the replay buffer of a stage; 1 to 10000."""
    read_rule: str = "paper"
    """Rule that selects a batch of the buffer: `paper` (the newest of the least-read batches) or
    `authors` (the rule of the authors' code)."""
    max_reuse: int | None = None
    """Maximum number of times that a stage learns from one batch; from 1; null: no limit."""
    max_age: int | None = None
    """Maximum age of a batch, in later outputs of the stage below; from 0; null: no limit."""
    storage: str = "device"
    """Memory of the buffer: `device` (of the stage) or `host`."""
    storage_precision: str | None = None
    """Number format of the buffer: `fp32`, `bf16` or `fp16`; null: the format of the link."""
    policy: Any = "overwrite"
    """Policy of the links: `overwrite` (a newer batch may replace an older batch; no stage waits)
    or `block` (every batch is read once, in order); one for all links, or a list, one per link."""
    slowdown: list[float] = field(default_factory=list)
    """Factor by which each stage is slowed down, one per stage; 1 to 1000; []: no
    slowdown."""
    simulate: bool = False
    """Simulate all stages in one process, in an order determined by the seed."""
    order: str = "random"
    """Order of the stages in a simulation: `random`, or `sequential` (0, 1, ..., K - 1, 0, ...)."""
    warmup: bool = True
    """Begin a simulation with two draws of each stage."""

    def __post_init__(self) -> None:
        MethodConfig.__post_init__(self)
        require_number("method.buffer", self.buffer, 1, 10_000)
        require_name("method.read_rule", self.read_rule, READ_RULES)
        if self.max_reuse is not None:
            require_number("method.max_reuse", self.max_reuse, 1)
        if self.max_age is not None:
            require_number("method.max_age", self.max_age, 0)
        require_name("method.storage", self.storage, STORAGES)
        if self.storage_precision is not None:
            require_name(
                "method.storage_precision", self.storage_precision, ("fp32", "bf16", "fp16")
            )
        require_name("method.order", self.order, ("random", "sequential"))
        self._check_policies()
        for factor in self.slowdown:
            require_number("method.slowdown", factor, 1, 1000)
        if not self.simulate:
            hint = "Only simulations have an order: give method.simulate=true"
            require(self.order == "random", "method.order", self.order, "random", hint)
            require(self.warmup, "method.warmup", self.warmup, "true", hint)

    def _check_policies(self) -> None:
        several = isinstance(self.policy, list)
        policies = self.policy if several else [self.policy]
        for policy in policies:
            require_name("method.policy", str(policy), POLICIES)
        if self.simulate and "block" in policies:
            hint = "A simulation has no links; use method.order=sequential for synchronous stages"
            require(False, "method.policy", self.policy, "overwrite in a simulation", hint)
        for key in ("max_reuse", "max_age"):
            got = getattr(self, key)
            if got is not None and "block" in policies:
                hint = "With method.policy=block, every batch is read once, in order"
                require(False, f"method.{key}", got, "null with method.policy=block", hint)

    def policy_of(self, link: int) -> str:
        """Policy of the link above stage `link`."""
        return str(self.policy[link] if isinstance(self.policy, list) else self.policy)

    def slowdown_of(self, stage: int) -> float:
        """Factor by which `stage` is slowed down."""
        return self.slowdown[stage] if self.slowdown else 1.0

    def check_stages(self, stages: int) -> None:
        """Raises ConfigError for lists whose length does not fit `stages`."""
        if self.slowdown and len(self.slowdown) != stages:
            allowed = f"a list of {stages} factors, one per stage, or an empty list"
            require(False, "method.slowdown", self.slowdown, allowed)
        if isinstance(self.policy, list) and len(self.policy) != stages - 1:
            allowed = f"one for all links, or a list of {stages - 1}, one per link"
            require(False, "method.policy", self.policy, allowed)


@dataclass(kw_only=True, slots=True)
class SequentialConfig(MethodConfig):
    """Sequential learning: one stage after the other, each for `epochs` epochs, with the stages
    below frozen."""

    name: str = "sequential"


@dataclass(kw_only=True, slots=True)
class BackpropConfig(MethodConfig):
    """Backprop: one loss after the last stage, whose gradient flows back through all stages."""

    name: str = "backprop"
    schedule: str | None = None
    """Schedule of the micro-batches, for more than one stage: `gpipe`, `1f1b`, `interleaved_1f1b`
    (two or more stages per process) or `zbv` (two stages per process); null: 1f1b."""
    microbatches: int = 4
    """m, the number of equal parts of a batch, for more than one stage; 1 to 100000."""

    def __post_init__(self) -> None:
        # `super()` without arguments fails in a dataclass with slots.
        MethodConfig.__post_init__(self)
        if self.schedule is not None:
            require_name("method.schedule", self.schedule, tuple(PLACEMENTS))
        require_number("method.microbatches", self.microbatches, 1, 100_000)


CONTEXTS = ("none", "labels")


@dataclass(kw_only=True, slots=True)
class DniConfig(MethodConfig):
    """Synthetic gradients: each stage learns from a prediction of the gradient of its output."""

    name: str = "dni"
    context: str = "none"
    """What the synthesisers read besides the output of their stage: `none`, or `labels` (cDNI)."""
    delay: int = 1
    """Batches after which a synthesiser learns from the gradient of a batch, from 0; 0: in the same
    step, for which a stage waits."""
    hidden: int = 2
    """Hidden layers of a synthesiser; 1 to 100."""
    width: int | None = None
    """Channels of the hidden layers; null: the channels of the output of the stage."""
    kernel: int = 5
    """Side of the convolutions of a synthesiser; an odd number from 1 to 99."""

    def __post_init__(self) -> None:
        MethodConfig.__post_init__(self)
        require_name("method.context", self.context, CONTEXTS)
        require_number("method.delay", self.delay, 0)
        require_number("method.hidden", self.hidden, 1, 100)
        if self.width is not None:
            require_number("method.width", self.width, 1)
        odd = 1 <= self.kernel <= 99 and self.kernel % 2 == 1
        require(odd, "method.kernel", self.kernel, "an odd number from 1 to 99")


@dataclass(kw_only=True, slots=True)
class DdgConfig(MethodConfig):
    """Delayed gradients: stage j of K goes backward K - 1 - j batches late."""

    name: str = "ddg"


@dataclass(kw_only=True, slots=True)
class FeaturesReplayConfig(MethodConfig):
    """Features replay: as delayed gradients, with a second forward instead of kept activations."""

    name: str = "features_replay"


@dataclass(kw_only=True, slots=True)
class CustomMethodConfig(MethodConfig):
    """A method from outside the package."""

    name: str = "custom"
    target: str = ""
    """The builder: `package.module:builder` or `package.module.builder`. It returns a
    `dglpipe.methods.Method`."""
    args: dict[str, Any] | None = None
    """Keyword arguments of the builder; null: none."""

    def __post_init__(self) -> None:
        MethodConfig.__post_init__(self)
        self.args = self.args or {}
        hint = "Give method.target=package.module:builder"
        require(bool(self.target), "method.target", self.target, "a builder of a method", hint)


PLACEMENTS = {"gpipe": "line", "1f1b": "line", "interleaved_1f1b": "loop", "zbv": "v"}
"""Placement of the stages on the processes, by the schedule of pipelined backprop."""
METHODS: dict[str, type[Any]] = {
    "dgl": MethodConfig,
    "dgl_async": AsyncConfig,
    "sequential": SequentialConfig,
    "backprop": BackpropConfig,
    "dni": DniConfig,
    "ddg": DdgConfig,
    "features_replay": FeaturesReplayConfig,
    "custom": CustomMethodConfig,
}

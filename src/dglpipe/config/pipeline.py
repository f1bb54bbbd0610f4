"""The chain, its evaluation and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dglpipe.config.checks import (
    byte_count,
    require,
    require_name,
    require_number,
    require_positive,
)


@dataclass(kw_only=True, slots=True)
class PipelineConfig:
    """The chain: how many stages, on how many processes, cut where."""

    stages: int | None = None
    """K; null: 2, under torchrun world size / R."""
    processes: int | None = None
    """P; null: K, under torchrun world size / R."""
    replicas: int = 1
    """R, data-parallel copies of the whole chain."""
    split: Any = "auto"
    """`auto` (by cost: the slowest stage as fast as can be), `even` (sizes differ by at most
    1), or the list of the first segment of every stage but the first."""
    cost: str = "flops"
    """What `auto` balances: `flops`, or `time`, measured before the run starts."""
    times: Any = None
    """Seconds a step, `{segments: [...], input_gradients: [...], heads: [...]}`, of `Costs`, or a
    list of such, one a stage; null: measured where `cost` is `time`, and written here."""
    memory_limit: Any = None
    """What a stage may need, in bytes or as a text with its unit, 6GiB; null: no limit."""
    threads: int | None = None
    """CPU threads a process; null: max(1, cores // (P x R))."""
    depth: int = 2
    """D: messages sent and not yet taken, at most, on each link."""
    backend: str = "auto"
    """`auto` (nccl with a GPU a process, else gloo), `gloo`, `nccl`."""
    checked: bool = False
    """Poison receive buffers until they are waited for and checksum what is being sent:
    finds misuse of buffers, costs time."""

    def __post_init__(self) -> None:
        for key in ("stages", "processes", "threads"):
            value = getattr(self, key)
            if value is not None:
                require_number(f"pipeline.{key}", value, 1)
        require_number("pipeline.replicas", self.replicas, 1)
        require_number("pipeline.depth", self.depth, 1)
        require_name("pipeline.backend", self.backend, ("auto", "gloo", "nccl"))
        require_name("pipeline.cost", self.cost, ("flops", "time"))
        if isinstance(self.times, list):
            for j, one in enumerate(self.times):
                _require_times(f"pipeline.times[{j}]", one)
        elif self.times is not None:
            _require_times("pipeline.times", self.times)
        if self.memory_limit is not None:
            require_number("pipeline.memory_limit", self.memory_bytes or 0, 1)
        if isinstance(self.split, Sequence) and not isinstance(self.split, str):
            numbers = all(isinstance(at, int) and not isinstance(at, bool) for at in self.split)
            require(numbers, "pipeline.split", list(self.split), "a list of whole numbers")
        else:
            allowed = "auto, even, or the list of the first segment of every stage but the first"
            require(self.split in ("even", "auto"), "pipeline.split", self.split, allowed)

    @property
    def memory_bytes(self) -> int | None:
        """`memory_limit` as a number."""
        limit = self.memory_limit
        return limit if limit is None else byte_count("pipeline.memory_limit", limit)

    def times_of(self, j: int) -> dict[str, list[float]]:
        """The entry of `times` for stage `j`; there must be some."""
        times: dict[str, list[float]] = (
            self.times[j] if isinstance(self.times, list) else self.times
        )
        return times


def _require_times(key: str, times: Any) -> None:
    names = {"segments", "input_gradients", "heads"}
    allowed = f"lists of seconds under {', '.join(sorted(names))}"
    named = isinstance(times, dict) and set(times) == names
    require(named and all(isinstance(one, list) for one in times.values()), key, times, allowed)
    for name, values in times.items():
        for at, one in enumerate(values):
            _require_seconds(f"{key}.{name}[{at}]", one, name == "heads")


def _require_seconds(key: str, value: object, endless: bool) -> None:
    """A time; where it is `endless` infinity too, for a head that cannot be."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    finite = number and math.isfinite(value)  # type: ignore[arg-type]
    allowed = "a number of seconds from 0" + (", or inf for no head" if endless else "")
    require(number and (finite or endless), key, value, allowed)


@dataclass(kw_only=True, slots=True)
class LinkConfig:
    """Slow links, emulated."""

    delay_ms: float = 0.0
    """Milliseconds that a message takes on every link, besides what its size takes."""
    bandwidth_mbps: float | None = None
    """Megabits a second of every link; null: as fast as it is."""

    def __post_init__(self) -> None:
        require_number("link.delay_ms", self.delay_ms, 0)
        if self.bandwidth_mbps is not None:
            require_positive("link.bandwidth_mbps", self.bandwidth_mbps)

    @property
    def is_emulated(self) -> bool:
        return bool(self.delay_ms or self.bandwidth_mbps)

    @property
    def delay(self) -> float:
        """Seconds."""
        return self.delay_ms / 1e3

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.bandwidth_mbps * 1e6 / 8 if self.bandwidth_mbps else float("inf")


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """Evaluation on the test split, through the pipeline."""

    every: int = 1
    """Epochs between two evaluations; 0: only after the last step, where one always is."""
    batch_size: int | None = None
    """Rows of a test batch over all replicas; null: `batch_size`."""

    def __post_init__(self) -> None:
        require_number("evaluate.every", self.every, 0)
        if self.batch_size is not None:
            require_number("evaluate.batch_size", self.batch_size, 1)


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """What survives a kill."""

    every: int = 0
    """Steps between two checkpoints; 0: none."""
    keep: int = 2
    """Complete checkpoints that are kept."""

    def __post_init__(self) -> None:
        require_number("checkpoint.every", self.every, 0)
        require_number("checkpoint.keep", self.keep, 1)

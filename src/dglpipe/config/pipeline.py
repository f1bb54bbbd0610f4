"""The pipeline: stages, processes, replicas and cuts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dglpipe.config.checks import byte_count, require, require_name, require_number

MOST = 100_000
"""Upper limit of stages, processes, replicas and threads."""
LONGEST_STEP_S = 1e6
"""Upper limit of a time in `times`."""


@dataclass(kw_only=True, slots=True)
class PipelineConfig:
    """The number of stages, processes and replicas, and the cuts between the stages."""

    stages: int | None = None
    """K, the number of stages; from 1 to the number of segments of the network; null: 2
    (`method=backprop`: 1), under torchrun world size / R."""
    processes: int | None = None
    """P, the number of processes of a replica; 1 to K; null: K, under torchrun world size / R."""
    replicas: int = 1
    """R, the number of data-parallel copies of the whole pipeline; from 1."""
    split: Any = "auto"
    """Where to cut: `auto` (minimises the cost of the most expensive stage), `even` (the numbers
    of segments differ by at most 1, larger stages first), or the list of the first segment of
    every stage but stage 0."""
    cost: str = "flops"
    """Cost that `split=auto` balances: `flops`, or `time` (measured before the run starts)."""
    times: Any = None
    """Measured times in seconds per step, a mapping of lists `{segments: [...],
    input_gradients: [...], heads: [...]}`, or a list of such mappings, one per stage; null:
    measured if `cost=time`. The resolved configuration holds the measured times."""
    memory_limit: Any = None
    """Memory that a stage may need: a number of bytes, or a string with a unit (`800MB`, `6GiB`);
    above 0; null: no limit."""
    threads: int | None = None
    """CPU threads per process; from 1; null: max(1, cores // (P x R))."""
    depth: int = 2
    """D, the maximum number of messages per link that are sent and not yet received; 1 to
    1024."""
    backend: str = "auto"
    """`gloo`, `nccl`, or `auto` (`nccl` if every process has a GPU, else `gloo`)."""
    checked: bool = False
    """Fill receive buffers with NaN until a receive completes, and compute checksums of messages
    in flight: detects misuse of buffers, at the cost of speed."""

    def __post_init__(self) -> None:
        for key in ("stages", "processes", "threads"):
            value = getattr(self, key)
            if value is not None:
                require_number(f"pipeline.{key}", value, 1, MOST)
        require_number("pipeline.replicas", self.replicas, 1, MOST)
        require_number("pipeline.depth", self.depth, 1, 1024)
        require_name("pipeline.backend", self.backend, ("auto", "gloo", "nccl"))
        require_name("pipeline.cost", self.cost, ("flops", "time"))
        if isinstance(self.times, list):
            for j, one in enumerate(self.times):
                _require_times(f"pipeline.times[{j}]", one)
        elif self.times is not None:
            _require_times("pipeline.times", self.times)
        if self.memory_limit is not None:
            require_number("pipeline.memory_limit", self.memory_bytes or 0, 1, 2**60)
        self._check_split()

    def _check_split(self) -> None:
        if isinstance(self.split, Sequence) and not isinstance(self.split, str):
            numbers = all(isinstance(at, int) and not isinstance(at, bool) for at in self.split)
            require(numbers, "pipeline.split", list(self.split), "a list of whole numbers")
        else:
            allowed = "auto, even, or the list of the first segment of every stage but stage 0"
            require(self.split in ("even", "auto"), "pipeline.split", self.split, allowed)

    @property
    def memory_bytes(self) -> int | None:
        """`memory_limit` in bytes; None: no limit."""
        limit = self.memory_limit
        return limit if limit is None else byte_count("pipeline.memory_limit", limit)

    def times_of(self, j: int) -> dict[str, list[float]]:
        """The measured times of stage `j`; `times` must not be None."""
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


def _require_seconds(key: str, value: object, may_be_infinite: bool) -> None:
    """Checks one time; infinity is the time of a head where no head is possible."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    fits = number and value <= LONGEST_STEP_S  # type: ignore[operator]
    allowed = f"a number of seconds from 0 to {LONGEST_STEP_S:g}"
    allowed += ", or inf for no head" if may_be_infinite else ""
    require(fits or (may_be_infinite and value == math.inf), key, value, allowed)

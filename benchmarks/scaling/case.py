"""What one measurement of `scaling.py` runs."""

from __future__ import annotations

from dataclasses import dataclass

from dglpipe.config import LinkConfig

FORWARD = 1 / 3
"""Share of a stage's time before it sends."""
PIPELINES = ("gpipe", "1f1b", "zbv")
WARM_UP = 5
"""Steps that are not measured, after the chain is full."""


@dataclass(frozen=True)
class Case:
    """One measurement."""

    way: str
    stages: int
    ms: float
    kib: int
    steps: int
    spin: float = 0.0
    """Share of its time that a stage computes instead of sleeping."""
    uneven: float = 1.0
    """Factor of the time of the middle stage."""
    jitter: float = 0.0
    """Largest relative change of a stage's time, drawn anew for each step."""
    latency_ms: float = 0.0
    gbit: float = 0.0
    """0: no limit."""
    microbatches: int = 8
    """Of a pipeline."""
    gradient_kib: int = 1024
    """Gradients that data-parallel training averages."""
    depth: int = 2
    buckets: int = 4
    """Parts of the gradients that data-parallel training averages during backward."""

    def seconds(self, stage: int) -> float:
        return self.ms / 1e3 * (self.uneven if stage == self.stages // 2 else 1.0)

    @property
    def ideal(self) -> float:
        """Seconds a step of a chain that never waits: the time of its slowest stage."""
        return max(self.seconds(stage) for stage in range(self.stages))

    @property
    def mean(self) -> float:
        """Seconds a step of a replica, which computes all stages of 1/K of the batch."""
        return sum(self.seconds(stage) for stage in range(self.stages)) / self.stages

    @property
    def chunks(self) -> int:
        """Stages a process of a pipeline has."""
        return 2 if self.way == "zbv" else 1

    @property
    def hops(self) -> int:
        """Consecutive messages by which a ring averages a bucket."""
        return 2 * (self.stages - 1)

    @property
    def refusal(self) -> str | None:
        """Why the way does not support this setting; None: it does."""
        if self.stages == 1 and self.way != "dgl":
            return "one process has no neighbours"
        if self.way == "1f1b" and self.microbatches < self.stages:
            return f"needs at least {self.stages} micro-batches"
        if self.way == "bare" and self.link.is_emulated:
            return "has no emulated links"
        return None

    @property
    def link(self) -> LinkConfig:
        """The links as settings of a run."""
        mbps = self.gbit * 1e3 if self.gbit else None
        return LinkConfig(delay_ms=self.latency_ms, bandwidth_mbps=mbps)

    @property
    def warm_up(self) -> int:
        """Steps before the measurement."""
        return min(self.steps // 2, self.stages + WARM_UP)

"""The chain, its evaluation and its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dglpipe.config.checks import require, require_name, require_number


@dataclass(kw_only=True, slots=True)
class PipelineConfig:
    """The chain: how many stages, on how many processes, cut where."""

    stages: int | None = None
    """K; null: 2, under torchrun world size / R."""
    processes: int | None = None
    """P; null: K, under torchrun world size / R."""
    replicas: int = 1
    """R, data-parallel copies of the whole chain."""
    split: Any = "even"
    """`even` (sizes differ by at most 1), `auto` (by FLOPs: the slowest stage as fast as can
    be), or the list of the first segment of every stage but the first."""
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
        if isinstance(self.split, Sequence) and not isinstance(self.split, str):
            numbers = all(isinstance(at, int) and not isinstance(at, bool) for at in self.split)
            require(numbers, "pipeline.split", list(self.split), "a list of whole numbers")
        else:
            allowed = "even, auto, or the list of the first segment of every stage but the first"
            require(self.split in ("even", "auto"), "pipeline.split", self.split, allowed)


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

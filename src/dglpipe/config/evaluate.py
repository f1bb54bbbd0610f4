"""Evaluation during training."""

from __future__ import annotations

from dataclasses import dataclass

from dglpipe.config.checks import require_number


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """Evaluation on the test split, through the pipeline."""

    every: int = 1
    """Epochs between two evaluations; from 0; 0: only after the last step. The last step of a run
    is always followed by an evaluation."""
    batch_size: int | None = None
    """Rows of a test batch over all replicas; from 1; null: `batch_size`."""

    def __post_init__(self) -> None:
        require_number("evaluate.every", self.every, 0)
        if self.batch_size is not None:
            require_number("evaluate.batch_size", self.batch_size, 1)

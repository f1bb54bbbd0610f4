"""Checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from dglpipe.config.checks import require_number


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """How often a run writes checkpoints, and how many it keeps."""

    every: int = 0
    """Steps between two checkpoints; from 0; 0: no checkpoints."""
    keep: int = 2
    """Complete checkpoints to keep; from 1. A damaged checkpoint is replaced by an older one, so
    with 1 there is none to continue from."""

    def __post_init__(self) -> None:
        require_number("checkpoint.every", self.every, 0)
        require_number("checkpoint.keep", self.keep, 1)

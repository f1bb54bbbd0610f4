"""Measurements of convergence during training."""

from __future__ import annotations

from dataclasses import dataclass

from dglpipe.config.checks import require_number


@dataclass(kw_only=True, slots=True)
class ProbeConfig:
    """Gradient norm of every local loss, and drift of the input law of every stage."""

    every: int = 0
    """Steps between two measurements; from 0; 0: none."""
    batch_size: int = 256
    """Test images of the probe batch, on which the drift is measured; from 1, at most the test
    split."""

    def __post_init__(self) -> None:
        require_number("probe.every", self.every, 0)
        require_number("probe.batch_size", self.batch_size, 1)

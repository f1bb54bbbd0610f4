"""Numerical precision."""

from __future__ import annotations

from dataclasses import dataclass

from dglpipe.config.checks import require_name


@dataclass(kw_only=True, slots=True)
class PrecisionConfig:
    """Number format of forward, backward and the links; weights stay fp32."""

    name: str = "fp32"
    """`fp32`, `bf16`, or `fp16` (requires CUDA devices)."""

    def __post_init__(self) -> None:
        require_name("precision.name", self.name, ("fp32", "bf16", "fp16"))

"""Auxiliary heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dglpipe.config.checks import require_name


@dataclass(kw_only=True, slots=True)
class HeadConfig:
    """A built-in auxiliary head; `models/heads.py` defines the layers."""

    name: str = "mlp_sr"
    """`mlp_sr`, `mlp`, `cnn` or `linear`."""

    def __post_init__(self) -> None:
        require_name("head.name", self.name, tuple(HEADS))


HEADS: dict[str, type[Any]] = dict.fromkeys(("mlp_sr", "mlp", "cnn", "linear"), HeadConfig)
"""Built-in heads: name -> schema."""

"""Auxiliary heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dglpipe.config.checks import require, require_name, require_number
from dglpipe.config.plugin import PluginConfig

BEFORE_POOL, OUTPUT = "before_pool", "output"
READS = (BEFORE_POOL, OUTPUT)
"""What a head reads of a stage that ends in pooling."""
INITS = ("default", "kaiming")
"""Initial weights of the built-in heads."""


@dataclass(kw_only=True, slots=True)
class HeadConfig:
    """A built-in auxiliary head; `models/heads.py` defines the layers."""

    name: str = "mlp_sr"
    """`mlp_sr`, `mlp`, `cnn`, `linear`, `dni` or `cnn_sr`."""
    reads: str = BEFORE_POOL
    """What the head reads of a stage that ends in pooling: `before_pool`, the map in front of the
    pool, or `output`, the pooled map that crosses the link."""
    init: str = "default"
    """Initial weights: `default`, the distributions of torch, or `kaiming`: convolutions from the
    normal distribution of He et al. with fan-out, linear layers from N(0, 0.01^2), biases 0."""
    dropout: float = 0.0
    """Probability that an input of the last linear layer is dropped in training; 0 to below 1."""

    def __post_init__(self) -> None:
        require_name("head.name", self.name, tuple(HEADS))
        require_name("head.reads", self.reads, READS)
        require_name("head.init", self.init, INITS)
        fits = 0 <= self.dropout < 1
        require(fits, "head.dropout", self.dropout, "a number from 0 to below 1")


@dataclass(kw_only=True, slots=True)
class CnnSrConfig(HeadConfig):
    """The head `cnn_sr`: a few convolutions on a reduced map."""

    side: int = 4
    """Height and width in pixels to which the map is reduced first; from 1. Smaller maps stay."""
    depth: int = 1
    """Number of 3x3 convolutions; 1 to 100."""
    width: int | None = None
    """Channels of the convolutions; null: the channels of the network's last map."""

    def __post_init__(self) -> None:
        HeadConfig.__post_init__(self)
        require_number("head.side", self.side, 1)
        require_number("head.depth", self.depth, 1, 100)
        if self.width is not None:
            require_number("head.width", self.width, 1)


@dataclass(kw_only=True, slots=True)
class CustomHeadConfig(PluginConfig):
    """A head from outside the package."""

    reads: str = BEFORE_POOL
    """As in `HeadConfig`."""

    def __post_init__(self) -> None:
        require_name("head.reads", self.reads, READS)


AnyHeadConfig = HeadConfig | CustomHeadConfig

HEADS: dict[str, type[Any]] = {
    **dict.fromkeys(("mlp_sr", "mlp", "cnn", "linear", "dni"), HeadConfig),
    "cnn_sr": CnnSrConfig,
}
"""Built-in heads: name -> schema."""

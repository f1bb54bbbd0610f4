"""Optimizers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dglpipe.config.checks import require, require_number, require_positive


@dataclass(kw_only=True, slots=True)
class CommonConfig:
    """Settings of every optimizer."""

    clip: float | None = None
    """Maximum norm of the gradient of a stage; above 0, at most 1e9; null: no clipping."""
    head_lr_factor: float = 1.0
    """Factor of the learning rate of heads and other auxiliary modules; above 0, at most 1e9."""
    head_weight_decay: float | None = None
    """Weight decay of heads and other auxiliary modules; 0 to 1000; null: `weight_decay`."""
    norm_bias_lr_factor: float = 1.0
    """Factor of the learning rate of the biases of norms; above 0, at most 1e9."""
    lookahead: int = 0
    """Steps between two moves of the weights and of the statistics of batch norm to their running
    average, and at the end of the run; 0: never."""
    lookahead_decay: float = 0.95
    """Decay of the average per step at the end of the run, 0 to 1. At step t of T, the average
    keeps `lookahead_decay ** lookahead * (t / T) ** 3` of itself."""


@dataclass(kw_only=True, slots=True)
class SgdConfig(CommonConfig):
    """`torch.optim.SGD` with momentum."""

    name: str = "sgd"
    """Always `sgd`."""
    lr: float = 0.1
    """Learning rate; above 0, at most 1e9."""
    momentum: float = 0.9
    """Momentum factor; 0 to 1; 0: no momentum."""
    nesterov: bool = False
    """Use Nesterov momentum; requires `momentum` above 0."""
    weight_decay: float = 5e-4
    """L2 penalty; 0 to 1000."""
    decoupled: bool = False
    """Whether `weight_decay` is divided by the learning rate, so that a weight loses this fraction
    in a step at the full rate."""

    def __post_init__(self) -> None:
        _check_common(self)
        require_number("optimizer.momentum", self.momentum, 0, 1)
        fits = not self.nesterov or self.momentum > 0
        allowed = "false with optimizer.momentum=0"
        hint = "Set optimizer.momentum above 0"
        require(fits, "optimizer.nesterov", self.nesterov, allowed, hint)


@dataclass(kw_only=True, slots=True)
class AdamConfig(CommonConfig):
    """`torch.optim.Adam`: weight decay is an L2 penalty."""

    name: str = "adam"
    """`adam`."""
    lr: float = 1e-3
    """Learning rate; above 0, at most 1e9."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Decay rates of the running averages of the gradient and its square; each 0 to below 1."""
    eps: float = 1e-8
    """Term added to the denominator for numerical stability; above 0, at most 1000."""
    weight_decay: float = 0.0
    """L2 penalty; 0 to 1000."""

    def __post_init__(self) -> None:
        _check_common(self)
        fits = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(fits, "optimizer.betas", self.betas, "two numbers from 0 to below 1")
        require_positive("optimizer.eps", self.eps, 1000)


@dataclass(kw_only=True, slots=True)
class AdamWConfig(AdamConfig):
    """`torch.optim.AdamW`: weight decay is decoupled from the gradient."""

    name: str = "adamw"
    """`adamw`."""
    weight_decay: float = 0.01
    """Decoupled weight decay; 0 to 1000."""


def _check_common(config: SgdConfig | AdamConfig) -> None:
    require_positive("optimizer.lr", config.lr)
    require_number("optimizer.weight_decay", config.weight_decay, 0, 1000)
    if config.clip is not None:
        require_positive("optimizer.clip", config.clip)
    require_positive("optimizer.head_lr_factor", config.head_lr_factor)
    require_positive("optimizer.norm_bias_lr_factor", config.norm_bias_lr_factor)
    require_number("optimizer.lookahead", config.lookahead, 0)
    require_number("optimizer.lookahead_decay", config.lookahead_decay, 0, 1)
    if config.head_weight_decay is not None:
        require_number("optimizer.head_weight_decay", config.head_weight_decay, 0, 1000)


OptimizerConfig = SgdConfig | AdamConfig
OPTIMIZERS: dict[str, type[Any]] = {"sgd": SgdConfig, "adam": AdamConfig, "adamw": AdamWConfig}
"""Optimizers: name -> schema."""

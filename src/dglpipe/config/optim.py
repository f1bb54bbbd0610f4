"""How stages learn: head, optimizer, schedule, precision."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dglpipe.config.checks import require, require_name, require_number, require_positive


@dataclass(kw_only=True, slots=True)
class HeadConfig:
    """An auxiliary head; `heads.py` has its layers."""

    name: str = "mlp_sr"

    def __post_init__(self) -> None:
        require_name("head.name", self.name, ("mlp_sr", "mlp", "cnn", "linear"))


@dataclass(kw_only=True, slots=True)
class SgdConfig:
    """Stochastic gradient descent with momentum."""

    name: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    clip: float | None = None
    """Largest norm of a stage's gradient; null: not clipped."""

    def __post_init__(self) -> None:
        _check_optimizer(self.lr, self.weight_decay, self.clip)
        require_number("optimizer.momentum", self.momentum, 0, 1)
        hint = "Nesterov needs optimizer.momentum above 0"
        fits = not self.nesterov or self.momentum > 0
        require(fits, "optimizer.nesterov", self.nesterov, "false without momentum", hint)


@dataclass(kw_only=True, slots=True)
class AdamConfig:
    """Adam: weight decay as an L2 penalty."""

    name: str = "adam"
    lr: float = 1e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None
    """Largest norm of a stage's gradient; null: not clipped."""

    def __post_init__(self) -> None:
        _check_optimizer(self.lr, self.weight_decay, self.clip)
        fits = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(fits, "optimizer.betas", self.betas, "two numbers from 0 to below 1")
        require_positive("optimizer.eps", self.eps)


@dataclass(kw_only=True, slots=True)
class AdamWConfig(AdamConfig):
    """AdamW: decoupled weight decay."""

    name: str = "adamw"
    weight_decay: float = 0.01


def _check_optimizer(lr: float, weight_decay: float, clip: float | None) -> None:
    require_positive("optimizer.lr", lr)
    require_number("optimizer.weight_decay", weight_decay, 0)
    if clip is not None:
        require_positive("optimizer.clip", clip)


OptimizerConfig = SgdConfig | AdamConfig
OPTIMIZERS: dict[str, type[Any]] = {"sgd": SgdConfig, "adam": AdamConfig, "adamw": AdamWConfig}


@dataclass(kw_only=True, slots=True)
class ConstantConfig:
    """The same learning rate in every step; `schedule.py` has the formulas."""

    name: str = "constant"
    warmup_steps: int = 0
    """Steps over which the rate rises linearly to its full value."""

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)


@dataclass(kw_only=True, slots=True)
class StepConfig:
    """A drop every so many epochs."""

    name: str = "step"
    warmup_steps: int = 0
    """Steps over which the rate rises linearly to its full value."""
    every: int = 15
    """Epochs between two drops."""
    factor: float = 0.2
    """What a drop multiplies the rate by."""

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)
        require_number("schedule.every", self.every, 1)
        require_number("schedule.factor", self.factor, 0, 1)


@dataclass(kw_only=True, slots=True)
class MultistepConfig:
    """A drop after each of the given epochs."""

    name: str = "multistep"
    warmup_steps: int = 0
    """Steps over which the rate rises linearly to its full value."""
    milestones: list[int] = field(default_factory=list)
    """Epochs, counted from 1, after which the rate drops."""
    factor: float = 0.1
    """What a drop multiplies the rate by."""

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)
        rising = sorted(set(self.milestones)) == self.milestones
        inside = all(milestone >= 1 for milestone in self.milestones)
        require(rising and inside, "schedule.milestones", self.milestones, "rising numbers from 1")
        require_number("schedule.factor", self.factor, 0, 1)


@dataclass(kw_only=True, slots=True)
class CosineConfig:
    """Half a cosine wave over the run."""

    name: str = "cosine"
    warmup_steps: int = 0
    """Steps over which the rate rises linearly to its full value."""
    final: float = 0.0
    """Share of the rate that is left at the end."""

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)
        require_number("schedule.final", self.final, 0, 1)


def _check_warmup(steps: int) -> None:
    require_number("schedule.warmup_steps", steps, 0)


ScheduleConfig = ConstantConfig | StepConfig | MultistepConfig | CosineConfig
SCHEDULES: dict[str, type[Any]] = {
    "constant": ConstantConfig,
    "step": StepConfig,
    "multistep": MultistepConfig,
    "cosine": CosineConfig,
}


@dataclass(kw_only=True, slots=True)
class PrecisionConfig:
    """Number format of forward and backward; weights stay fp32."""

    name: str = "fp32"

    def __post_init__(self) -> None:
        require_name("precision.name", self.name, ("fp32", "bf16", "fp16"))

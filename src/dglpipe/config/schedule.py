"""Learning rate schedules; `pipeline/lr_schedule.py` defines the formulas."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dglpipe.config.checks import LARGEST, require, require_number


@dataclass(kw_only=True, slots=True)
class ConstantConfig:
    """A constant learning rate."""

    name: str = "constant"
    """Always `constant`."""
    warmup_steps: int = 0
    """Steps in which the rate increases linearly to its full value; from 0; 0: no warmup."""

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)


@dataclass(kw_only=True, slots=True)
class StepConfig:
    """A learning rate that drops at fixed intervals."""

    name: str = "step"
    """Always `step`."""
    warmup_steps: int = 0
    """Steps in which the rate increases linearly to its full value; from 0; 0: no warmup."""
    every: int = 15
    """Epochs between two drops; from 1."""
    factor: float = 0.2
    """Factor of the learning rate at each drop; 0 to 1."""

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)
        require_number("schedule.every", self.every, 1)
        require_number("schedule.factor", self.factor, 0, 1)


@dataclass(kw_only=True, slots=True)
class MultistepConfig:
    """A learning rate that drops after given epochs."""

    name: str = "multistep"
    """Always `multistep`."""
    warmup_steps: int = 0
    """Steps in which the rate increases linearly to its full value; from 0; 0: no warmup."""
    milestones: list[int] = field(default_factory=list)
    """Epochs, counted from 1 and increasing, after which the rate drops; []: no drop."""
    factor: float = 0.1
    """Factor of the learning rate at each drop; 0 to 1."""

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)
        increasing = sorted(set(self.milestones)) == self.milestones
        fits = increasing and all(1 <= one <= LARGEST for one in self.milestones)
        require(
            fits,
            "schedule.milestones",
            self.milestones,
            f"increasing whole numbers from 1 to {LARGEST}",
        )
        require_number("schedule.factor", self.factor, 0, 1)


@dataclass(kw_only=True, slots=True)
class CosineConfig:
    """A learning rate that decreases along half a cosine wave over the run."""

    name: str = "cosine"
    """Always `cosine`."""
    warmup_steps: int = 0
    """Steps in which the rate increases linearly to its full value; from 0; 0: no warmup."""
    final: float = 0.0
    """Fraction of the full rate at the end of the run; 0 to 1."""

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)
        require_number("schedule.final", self.final, 0, 1)


@dataclass(kw_only=True, slots=True)
class TriangleConfig:
    """A learning rate that rises linearly to its full value and then falls linearly."""

    name: str = "triangle"
    """Always `triangle`."""
    start: float = 0.2
    """Fraction of the full rate at the first step; 0 to 1."""
    peak: float = 0.23
    """Fraction of the run after which the rate has its full value; 0 to 1."""
    final: float = 0.07
    """Fraction of the full rate at the end of the run; 0 to 1."""

    def __post_init__(self) -> None:
        require_number("schedule.start", self.start, 0, 1)
        require_number("schedule.peak", self.peak, 0, 1)
        require_number("schedule.final", self.final, 0, 1)


def _check_warmup(steps: int) -> None:
    require_number("schedule.warmup_steps", steps, 0)


ScheduleConfig = ConstantConfig | StepConfig | MultistepConfig | CosineConfig | TriangleConfig
SCHEDULES: dict[str, type[Any]] = {
    "constant": ConstantConfig,
    "step": StepConfig,
    "multistep": MultistepConfig,
    "cosine": CosineConfig,
    "triangle": TriangleConfig,
}
"""Learning rate schedules: name -> schema."""

"""A whole run, and what can differ from stage to stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dglpipe.config.build import build, choose
from dglpipe.config.checks import require, require_name, require_number, require_positive
from dglpipe.config.data import DataConfig
from dglpipe.config.method import METHODS, MethodConfig
from dglpipe.config.model import ModelConfig
from dglpipe.config.optim import (
    OPTIMIZERS,
    SCHEDULES,
    HeadConfig,
    OptimizerConfig,
    PrecisionConfig,
    ScheduleConfig,
)
from dglpipe.config.pipeline import CheckpointConfig, EvaluateConfig, LinkConfig, PipelineConfig
from dglpipe.config.plugin import PluginConfig

SINGLE: dict[str, type[Any]] = {
    "precision": PrecisionConfig,
    "pipeline": PipelineConfig,
    "link": LinkConfig,
    "evaluate": EvaluateConfig,
    "checkpoint": CheckpointConfig,
}
HEADS: dict[str, type[Any]] = dict.fromkeys(("mlp_sr", "mlp", "cnn", "linear"), HeadConfig)
NAMED: dict[str, dict[str, type[Any]]] = {
    "head": HEADS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "method": METHODS,
}
"""Groups whose choices have keys of their own."""
STAGE_GROUPS = ("optimizer", "schedule", "head", "precision")


@dataclass(kw_only=True, slots=True)
class StageConfig:
    """What can differ from stage to stage."""

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    head: HeadConfig | PluginConfig
    precision: PrecisionConfig


@dataclass(kw_only=True, slots=True)
class Config:
    """A whole run."""

    model: ModelConfig
    head: HeadConfig | PluginConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    method: MethodConfig
    precision: PrecisionConfig
    pipeline: PipelineConfig
    link: LinkConfig
    evaluate: EvaluateConfig
    checkpoint: CheckpointConfig
    per_stage: list[dict[str, Any]]
    """Partial settings of `optimizer`, `schedule`, `head`, `precision`, one a stage."""
    epochs: int
    """Passes over the training split."""
    max_steps: int | None
    """Steps after which training ends even inside an epoch; null: no limit."""
    batch_size: int
    """Rows of an optimizer step over all replicas."""
    seed: int
    log_every: int
    """Steps between two training lines of a stage."""
    resume: str
    """`never`, or `auto`: go on from the last complete checkpoint of `run_dir`."""
    timeout_s: float
    """Seconds after which a process that waits for another gives up."""
    timeline: bool
    """Whether `timeline.json` and a picture show what each stage did when."""
    deterministic: bool
    """Refuse operations that are not deterministic."""
    label_smoothing: float
    run_dir: str | None
    """Directory of the results; null: `runs/<date>_<time>`."""

    def __post_init__(self) -> None:
        require_number("epochs", self.epochs, 1)
        if self.max_steps is not None:
            require_number("max_steps", self.max_steps, 1)
        require_number("batch_size", self.batch_size, 1)
        require_number("seed", self.seed, 0, 2**32 - 1)
        require_number("log_every", self.log_every, 1)
        require_name("resume", self.resume, ("never", "auto"))
        require_positive("timeout_s", self.timeout_s)
        require_number("label_smoothing", self.label_smoothing, 0, 1)

    def stage(self, j: int) -> StageConfig:
        """The settings of stage `j`: its entry of `per_stage` over the common ones."""
        common = {
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "head": self.head,
            "precision": self.precision,
        }
        own = self.per_stage[j] if self.per_stage else {}
        parts = {
            group: overlay(group, base, own.get(group), f"per_stage[{j}].{group}")
            for group, base in common.items()
        }
        return StageConfig(**parts)


def overlay(group: str, base: Any, own: Any, path: str) -> Any:
    """`base` with the settings of `own`; another name starts from that name's defaults."""
    if own is None:
        return base
    node = {"name": own} if isinstance(own, str) else own
    require(isinstance(node, Mapping), path, own, "a name or a group of settings")
    same = node.get("name", base.name) == base.name
    merged = {**dataclasses.asdict(base), **node} if same else dict(node)
    if group in NAMED:
        return choose(group, merged, "name", NAMED[group])
    return build(SINGLE[group], merged, group)

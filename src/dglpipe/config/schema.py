"""The configuration of a whole run, and the settings that can differ between stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dglpipe.config.build import build, choose
from dglpipe.config.checkpoint import CheckpointConfig
from dglpipe.config.checks import require, require_name, require_number, require_path
from dglpipe.config.data import DATA_SETS, DataConfig
from dglpipe.config.evaluate import EvaluateConfig
from dglpipe.config.head import HEADS, AnyHeadConfig
from dglpipe.config.link import LinkConfig
from dglpipe.config.local import LOCALS, LocalConfig
from dglpipe.config.method import METHODS, MethodConfig
from dglpipe.config.model import MODEL_FAMILIES, ModelConfig
from dglpipe.config.optim import OPTIMIZERS, OptimizerConfig
from dglpipe.config.pipeline import PipelineConfig
from dglpipe.config.precision import PrecisionConfig
from dglpipe.config.probe import ProbeConfig
from dglpipe.config.schedule import SCHEDULES, ScheduleConfig

CHOICES: dict[str, dict[str, type[Any]]] = {
    "model": MODEL_FAMILIES,
    "head": HEADS,
    "local": LOCALS,
    "data": DATA_SETS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "method": METHODS,
}
"""Groups with one schema per choice: group -> choice -> schema."""
SINGLE: dict[str, type[Any]] = {
    "precision": PrecisionConfig,
    "pipeline": PipelineConfig,
    "link": LinkConfig,
    "evaluate": EvaluateConfig,
    "probe": ProbeConfig,
    "checkpoint": CheckpointConfig,
}
"""Groups with a single schema: group -> schema."""
STAGE_GROUPS = ("optimizer", "schedule", "head", "local", "precision")
"""Groups that can differ between stages (`per_stage`)."""


@dataclass(kw_only=True, slots=True)
class StageConfig:
    """The settings of one stage."""

    optimizer: OptimizerConfig
    """Optimizer of the stage."""
    schedule: ScheduleConfig
    """Learning rate schedule of the stage."""
    head: AnyHeadConfig
    """Auxiliary head of the stage; the last stage has none."""
    local: LocalConfig
    """Local objective of the stage."""
    precision: PrecisionConfig
    """Number format of the stage."""


@dataclass(kw_only=True, slots=True)
class Config:
    """The configuration of a whole run."""

    model: ModelConfig
    """Network to train."""
    head: AnyHeadConfig
    """Auxiliary head of every stage but the last."""
    local: LocalConfig
    """Local objective of every stage."""
    data: DataConfig
    """Data set."""
    optimizer: OptimizerConfig
    """Optimizer of every stage."""
    schedule: ScheduleConfig
    """Learning rate schedule of every stage."""
    method: MethodConfig
    """How the stages learn."""
    precision: PrecisionConfig
    """Number format of every stage."""
    pipeline: PipelineConfig
    """Stages, processes, replicas and cuts."""
    link: LinkConfig
    """Emulated links."""
    evaluate: EvaluateConfig
    """Evaluation during training."""
    probe: ProbeConfig
    """Measurements of convergence."""
    checkpoint: CheckpointConfig
    """Checkpoints."""
    per_stage: list[dict[str, Any]]
    """Settings of single stages: K mappings, each with parts of `optimizer`, `schedule`, `head`,
    `local` and `precision`; []: no stage differs."""
    epochs: int
    """Passes over the training split; 1 to 1000000."""
    max_steps: int | None
    """Optimizer steps after which training ends, even within an epoch; from 1; null: no limit."""
    batch_size: int
    """Rows of an optimizer step over all replicas; from 2 per replica, at most the training
    split."""
    seed: int
    """Seed of weights, batch order, augmentation and dropout; 0 to 2**32 - 1."""
    log_every: int
    """Steps between two training lines of a stage in `metrics.jsonl`; from 1."""
    resume: str
    """`never`, or `auto`: continue from the last complete checkpoint in `run_dir`, if any."""
    on_nonfinite: str
    """What happens when a loss, weight or buffer is NaN or infinite: `stop`, `warn` or `ignore`."""
    on_failure: str
    """What happens under `dglpipe train` when a process fails: `stop` (the other processes end), or
    `restart_stage` (only the stage of this process starts again; method=dgl_async over gloo)."""
    max_restarts: int
    """Restarts of `dglpipe train` from the last complete checkpoint after the failure of a process;
    0 to 1000."""
    timeout_s: float
    """Timeout of a process that waits for another process, in seconds; 0.1 to 1000000. A batch from
    a loading process has to arrive within half of it."""
    timeline: bool
    """Write a trace of the activity of every stage: `timeline.json` and `timeline.png`."""
    deterministic: bool
    """Use deterministic algorithms; operations without one raise an error."""
    label_smoothing: float
    """Label smoothing of the cross-entropy; 0 to 0.99; 0: none."""
    run_dir: str | None
    """Directory of the results; null: `runs/<date>_<time>`."""

    def __post_init__(self) -> None:
        require_number("epochs", self.epochs, 1, 1_000_000)
        if self.max_steps is not None:
            require_number("max_steps", self.max_steps, 1)
        require_number("batch_size", self.batch_size, 1)
        require_number("seed", self.seed, 0, 2**32 - 1)
        require_number("log_every", self.log_every, 1)
        require_name("resume", self.resume, ("never", "auto"))
        require_name("on_nonfinite", self.on_nonfinite, ("stop", "warn", "ignore"))
        require_name("on_failure", self.on_failure, ("stop", "restart_stage"))
        require_number("max_restarts", self.max_restarts, 0, 1000)
        require_number("timeout_s", self.timeout_s, 0.1, 1_000_000)
        require_number("label_smoothing", self.label_smoothing, 0, 0.99)
        if self.run_dir is not None:
            require_path("run_dir", self.run_dir)

    def stage(self, j: int) -> StageConfig:
        """The settings of stage `j`: `per_stage[j]` merged over the common settings.

        Raises:
            ConfigError: an invalid setting in `per_stage[j]`.
        """
        own = self.per_stage[j] if self.per_stage else {}
        parts = {
            group: _overlay(group, getattr(self, group), own.get(group), f"per_stage[{j}].{group}")
            for group in STAGE_GROUPS
        }
        return StageConfig(**parts)


def _overlay(group: str, base: Any, own: Any, path: str) -> Any:
    """Merges the settings of one stage over the common settings of `group`.

    Args:
        group: one of `STAGE_GROUPS`.
        base: common settings.
        own: settings of the stage, or the name of a choice; None: same as `base`. Another choice
            than that of `base` starts from the defaults of that choice.
        path: key of `own`, for errors.
    """
    if own is None:
        return base
    node = {"name": own} if isinstance(own, str) else own
    require(isinstance(node, Mapping), path, own, "a name, or a group of settings {key: value}")
    same = node.get("name", base.name) == base.name
    merged = {**dataclasses.asdict(base), **node} if same else dict(node)
    if group in CHOICES:
        return choose(group, merged, CHOICES[group])
    return build(SINGLE[group], merged, group)

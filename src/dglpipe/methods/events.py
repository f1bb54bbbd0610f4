"""What a runner reports to the training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dglpipe.pipeline.stage import Stage


class Update(NamedTuple):
    """Event: some stages of a process have made an optimizer step."""

    step: int
    """Step number of these stages, from 1."""
    epoch: int
    stages: Sequence[Stage]
    """The stages that made the step."""
    schedule_step: int
    """Step of the learning rate schedule, from 1."""
    rows: int
    """Rows that the last stage of the process trained on; 0 if another stage made the step."""
    ends_pass: bool
    """Whether the batch is the last batch of its epoch."""
    saved: Sequence[Stage]
    """The stages to save if a checkpoint is due after this step."""
    is_lockstep: bool = True
    """Whether all stages of the process have the same step number."""


class Evaluation(NamedTuple):
    """Event: all stages of a process have finished an evaluation."""

    step: int
    epoch: int
    hits: int | None
    """Correct predictions of the ensemble; None except in the process of the last stage."""


class Measurement(NamedTuple):
    """Event: the probe batch has passed all stages of a process."""

    step: int
    epoch: int


Event = Update | Evaluation | Measurement

"""Learning rate schedules as pure functions of the step, without state to checkpoint."""

from __future__ import annotations

import math

from dglpipe.config import (
    CosineConfig,
    MultistepConfig,
    ScheduleConfig,
    StepConfig,
    TriangleConfig,
)


def rate_factor(config: ScheduleConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """The factor of the learning rate at `step`, counted from 1.

    Args:
        steps: number of steps of the run.
        steps_per_epoch: steps per epoch; `every` and `milestones` are in epochs.
    """
    if isinstance(config, TriangleConfig):
        share = (step - 1) / steps
        if share < config.peak:
            return config.start + (1 - config.start) * share / config.peak
        return 1 + (config.final - 1) * (share - config.peak) / (1 - config.peak)
    if step <= config.warmup_steps:
        return step / (config.warmup_steps + 1)
    if isinstance(config, CosineConfig):
        length = max(1, steps - config.warmup_steps)
        share = (step - config.warmup_steps - 1) / length
        return config.final + (1 - config.final) * (1 + math.cos(math.pi * share)) / 2
    if isinstance(config, StepConfig):
        return config.factor ** ((step - 1) // steps_per_epoch // config.every)
    if isinstance(config, MultistepConfig):
        done = (step - 1) // steps_per_epoch
        return config.factor ** sum(milestone <= done for milestone in config.milestones)
    return 1.0

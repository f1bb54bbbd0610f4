"""A stage that makes its own number of updates, whatever the others do (Algorithm 2)."""

from __future__ import annotations

from torch import Tensor

from dglpipe.config import MultistepConfig, ScheduleConfig, StepConfig
from dglpipe.errors import ConfigError
from dglpipe.pipeline.stage import Emit, Stage


class StageUpdates:
    """Counts the updates of a stage, which has a learning rate by its own count.

    Once it has made all of them it learns no more and goes on handing on, in evaluation mode, so
    that its final weights do not depend on how long the others take.

    Args:
        steps: updates that it makes.
        reset: whether the optimizer starts afresh at each drop of the learning rate.
    """

    def __init__(self, stage: Stage, steps: int, reset: bool, done: int = 0) -> None:
        self.stage = stage
        self.updates = done
        self._steps = steps
        self._reset = reset
        self.eval_mode(False)

    @property
    def is_done(self) -> bool:
        return self.updates >= self._steps

    def eval_mode(self, on: bool) -> None:
        """Switches to testing, or back to what it was."""
        self.stage.eval_mode(on or self.is_done)

    def turn(self, batch: Tensor, labels: Tensor, emit: Emit | None) -> None:
        """Learns from `batch` (B, ...) and `labels` (B,) if updates are left.

        Args:
            emit: takes the features, computed with the weights before the update.
        """
        if self.is_done:
            if emit is not None:
                emit(self.stage.infer(batch))
            return
        step = self.updates + 1
        if self._reset and self._drops(step):
            self.stage.optimizer.state.clear()
        self.stage.learn(batch, labels, step, emit)
        self.updates = step
        if step >= self._steps:
            self.stage.eval_mode(True)

    def _drops(self, step: int) -> bool:
        if step <= max(1, self.stage.settings.schedule.warmup_steps + 1):
            return False
        return self.stage.learning_rate(step) < self.stage.learning_rate(step - 1)


def check_drops(schedule: ScheduleConfig, key: str = "schedule") -> None:
    """Raises ConfigError, which names `key`, for a schedule without drops."""
    if not isinstance(schedule, StepConfig | MultistepConfig):
        hint = "method.reset_optimizer makes a fresh optimizer at each drop of the rate"
        raise ConfigError(key, schedule.name, "step or multistep, which have drops", hint)

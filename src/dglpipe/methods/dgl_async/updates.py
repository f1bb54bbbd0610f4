"""A stage that makes a number of updates of its own, at its own pace (Algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dglpipe.config import MultistepConfig, ScheduleConfig, StepConfig
from dglpipe.errors import ConfigError
from dglpipe.pipeline.stage import Emit, Stage


class StageUpdates:
    """Counts the updates of a stage, whose learning rate follows its own count.

    A stage that has made all of its updates learns no more. It goes on sending its output, in
    evaluation mode, so that its final weights do not depend on the pace of the other stages.

    Args:
        steps: updates of the stage.
        reset: whether the optimizer state is cleared at each drop of the learning rate.
        done: updates before the run was resumed.

    Attributes:
        count: updates made.
    """

    def __init__(self, stage: Stage, steps: int, reset: bool, done: int = 0) -> None:
        self.stage = stage
        self.count = done
        self._steps = steps
        self._reset = reset
        self.eval_mode(False)

    @property
    def is_done(self) -> bool:
        """Whether the stage has made all of its updates."""
        return self.count >= self._steps

    def eval_mode(self, on: bool) -> None:
        """Switches to evaluation, or back; a stage that is done stays in evaluation mode."""
        self.stage.eval_mode(on or self.is_done)

    def learn(
        self,
        inputs: Tensor,
        labels: Tensor,
        emit: Emit | None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Learns from `inputs` (B, ...) and `labels` (B,) if updates are left.

        Args:
            emit: takes the features, computed with the weights before the update.
            extras: further tensors of the message.
        """
        if self.is_done:
            if emit is not None:
                emit(self.stage.infer(inputs))
            return
        step = self.count + 1
        rate = self.stage.learning_rate
        is_past_warmup = step > max(1, self.stage.settings.schedule.warmup_steps + 1)
        if self._reset and is_past_warmup and rate(step) < rate(step - 1):
            self.stage.optimizer.state.clear()
        self.stage.learn(inputs, labels, step, emit, extras=extras)
        self.count = step
        if step >= self._steps:
            self.stage.eval_mode(True)


def require_drops(schedule: ScheduleConfig, key: str = "schedule") -> None:
    """Raises ConfigError, which names `key`, for a schedule without drops."""
    if not isinstance(schedule, StepConfig | MultistepConfig):
        hint = "method.reset_optimizer clears the optimizer at each drop of the learning rate"
        raise ConfigError(key, schedule.name, "step or multistep, which have drops", hint)

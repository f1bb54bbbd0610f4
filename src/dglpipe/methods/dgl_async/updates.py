"""A stage with its own update count and learning rate schedule (Algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dglpipe.pipeline.stage import Stage
from dglpipe.pipeline.stage_module import Emit


class StageUpdates:
    """Counts the updates of a stage; the count determines the learning rate.

    A stage that has made all of its updates stops learning. It continues to send outputs, in
    evaluation mode, so that its final weights do not depend on the speed of the other stages.

    Args:
        steps: number of updates that the stage makes.
        done: updates before the run was resumed.

    Attributes:
        count: updates made.
    """

    def __init__(self, stage: Stage, steps: int, done: int = 0) -> None:
        self.stage = stage
        self.count = done
        self._steps = steps
        self.eval_mode(False)

    @property
    def is_done(self) -> bool:
        """Whether the stage has made all of its updates."""
        return self.count >= self._steps

    def eval_mode(self, on: bool) -> None:
        """Switches to evaluation mode, or back; a stage that is done stays in evaluation mode."""
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
            emit: receives the features, computed with the weights before the update.
            extras: extra tensors of the message by name.
        """
        if self.is_done:
            if emit is not None:
                emit(self.stage.infer(inputs))
            return
        step = self.count + 1
        self.stage.learn(inputs, labels, step, emit, extras=extras)
        self.count = step
        if step >= self._steps:
            self.stage.eval_mode(True)

"""Methods that update stage j of K with the gradient of the batch of K - 1 - j steps before.

In step t, stage j runs batch t and then goes backward through an earlier batch, with the gradient
that stage j + 1 computed in step t - 1:

    step t        stage 0               stage 1               stage 2 (last)
    forward       batch t               batch t               batch t
    backward      batch t - 2           batch t - 1           batch t

Forward is locked: a stage runs a batch after the stage below. In the first K - 1 - j steps stage j
does not learn, and the gradients of the last K - 1 - j batches are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from dglpipe.config import Config
from dglpipe.data.batch_schedule import BatchSchedule
from dglpipe.errors import ConfigError
from dglpipe.methods.two_way import Entry, TwoWay, TwoWayRunner
from dglpipe.models.features import Boundary
from dglpipe.pipeline.stage import Stage
from dglpipe.pipeline.topology import Layout


class Delayed(TwoWay):
    """Stage j of K learns from the batch of K - 1 - j steps before."""

    def delay(self, stage: int, stages: int) -> int | None:
        """K - 1 - j."""
        return stages - 1 - stage if stage < stages - 1 else None

    def check(self, config: Config, layout: Layout, schedule: BatchSchedule) -> None:
        """Also refuses more stages than steps: stage 0 would not learn."""
        super().check(config, layout, schedule)
        if layout.stages > schedule.steps:
            allowed = f"at most {schedule.steps}, the steps of the run, with method={self.name}"
            raise ConfigError("pipeline.stages", layout.stages, allowed)

    def auxiliary(self, boundary: Boundary) -> Mapping[str, Callable[[], nn.Module]]:
        """No heads: there is one loss, after the last stage."""
        del boundary
        return {}


class DelayedRunner(TwoWayRunner):
    """Goes backward through earlier batches.

    A subclass implements `ascend`, which keeps `labels` and what `graph` needs, and `graph`.
    """

    def graph(self, stage: Stage, entry: Entry) -> tuple[Tensor, Tensor]:
        """The inputs (rows, ...) of a batch, and the output of `stage` that was computed from them,
        with its graph."""
        raise NotImplementedError

    def gather(self, stage: Stage, entry: Entry) -> None:
        """Moves the gradients of the batch to the weights of `stage`, if they are not there."""

    def descend(self, stage: Stage, step: int) -> None:
        """One step of the weights, from the batch of `delay` steps before."""
        batch = step - self.delay(stage)
        entry = self.recall(stage, batch)
        if entry is None:
            return
        inputs, output = self.graph(stage, entry)
        if self.is_last(stage):
            with stage.autocast():
                loss = stage.loss(output, entry.tensors["labels"])
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            gradient = self.take_down(stage, batch).to(output.dtype)
            if output.requires_grad:  # stage 0 may be frozen
                output.backward(gradient)  # type: ignore[no-untyped-call]
        self.gather(stage, entry)
        if inputs.grad is not None:
            self.send_down(stage, batch, inputs.grad)
        stage.update(step)

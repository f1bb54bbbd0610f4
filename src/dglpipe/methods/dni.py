"""Decoupled neural interfaces: stages learn from synthetic gradients.

Jaderberg et al., ICML 2017 (arXiv 1608.05343). Below the last stage, a synthesiser predicts the
gradient of the loss with respect to the output of its stage:

    h = f_j(x)                            forward, h is sent up
    theta_j learns from s_j(h [, y])      the predicted gradient of h
    s_j learns from |s_j(h [, y]) - g|^2  g comes down from stage j + 1, `delay` batches later

Stage j + 1 sends the gradient of its input: backpropagated from the loss in the last stage, and
from the prediction of its own synthesiser in the others. With `context=labels` the synthesisers
also read the labels (cDNI). With `delay=0` a stage waits for g within the step, as in the published
code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dglpipe.config import Config, DniConfig
from dglpipe.data.batch_schedule import BatchSchedule
from dglpipe.errors import ConfigError
from dglpipe.methods.base import RunContext
from dglpipe.methods.runner import Runner
from dglpipe.methods.two_way import TwoWay, TwoWayRunner
from dglpipe.models.features import Boundary
from dglpipe.models.synthesiser import Synthesiser
from dglpipe.pipeline.inputs import Arrival
from dglpipe.pipeline.link import Stash
from dglpipe.pipeline.stage import Stage
from dglpipe.pipeline.stage_module import Emit, cast_input
from dglpipe.pipeline.topology import Layout

SYNTHESISER = "synthesiser"


class Dni(TwoWay):
    """Synthetic gradients."""

    settings: DniConfig

    def delay(self, stage: int, stages: int) -> int | None:
        """`method.delay`, for every stage but the last."""
        return self.settings.delay if stage < stages - 1 else None

    def stash(self, stage: int, stages: int) -> Stash:
        """The outputs of `delay` batches and of the one in progress."""
        count = self.settings.delay + 1
        above = count if stage < stages - 1 else 0
        return Stash(outputs=above, from_above=above, to_below=count if stage else 0)

    def check(self, config: Config, layout: Layout, schedule: BatchSchedule) -> None:
        """Also refuses a delay that is not shorter than the run."""
        super().check(config, layout, schedule)
        if self.settings.delay >= schedule.steps:
            allowed = f"less than {schedule.steps}, the steps of the run"
            raise ConfigError("method.delay", self.settings.delay, allowed)

    def utilization(self, layout: Layout) -> float:
        """With `delay=0` a stage waits until the next stage has run forward and backward, which
        takes a step. Its own backward fills two thirds of this time. It computes 1 of 4/3 steps."""
        is_locked = self.settings.delay == 0 and layout.processes > 1
        return 0.75 if is_locked else 1.0

    def auxiliary(self, boundary: Boundary) -> Mapping[str, Callable[[], nn.Module]]:
        """A synthesiser in place of a head."""
        settings, classes = self.settings, boundary.classes
        labels = classes if settings.context == "labels" else 0
        return {
            SYNTHESISER: lambda: Synthesiser(
                boundary.features, settings.hidden, settings.width, settings.kernel, labels
            )
        }

    def runner(self, context: RunContext) -> Runner:
        return DniRunner(context)


class DniRunner(TwoWayRunner):
    """Trains each stage from its synthesiser, and each synthesiser from the stage above."""

    def ascend(self, stage: Stage, arrival: Arrival, emit: Emit | None) -> None:
        """One step of the weights of the stage."""
        item = arrival.item
        stage.seed(item.round_step)
        inputs = cast_input(arrival.batch, stage.settings.precision.name)
        if stage.index:
            inputs = inputs.detach().requires_grad_()
        with stage.autocast():
            output: Tensor = stage.module.segments(inputs)
            if emit is not None:
                emit(output)
            if self.is_last(stage):
                loss = stage.loss(output, arrival.labels)
        if self.is_last(stage):
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            with torch.no_grad():
                gradient = self._predict(stage, output, arrival.labels)
            if output.requires_grad:  # stage 0 may be frozen
                output.backward(gradient)  # type: ignore[no-untyped-call]
            stage.count_rows(item.rows)
            labels = arrival.labels.clone()
            self.keep(stage, item.round_step, output=output.detach(), labels=labels)
        if inputs.grad is not None:
            self.send_down(stage, item.round_step, inputs.grad)
        stage.update(item.round_step)

    def descend(self, stage: Stage, step: int) -> None:
        """One step of the weights of the synthesiser."""
        batch = step - self.delay(stage)
        entry = None if self.is_last(stage) else self.recall(stage, batch)
        if entry is None:
            return
        output, labels = entry.tensors["output"], entry.tensors["labels"]
        target = self.take_down(stage, batch)
        # The sum over the features, as in the published code, and the mean over the batch.
        guess = self._predict(stage, output, labels).float()
        loss = F.mse_loss(guess, target.float(), reduction="sum") / len(labels)
        loss.backward()  # type: ignore[no-untyped-call]
        stage.count_loss(loss, len(labels))
        stage.watch.history.end_step(step)
        stage.apply(step)

    def _predict(self, stage: Stage, output: Tensor, labels: Tensor) -> Tensor:
        """The predicted gradient, in the dtype and shape of `output`."""
        with stage.autocast():
            gradient: Tensor = stage.module.auxiliary[SYNTHESISER](output.detach(), labels)
        return gradient.to(output.dtype)

"""Features replay.

Huo et al., NeurIPS 2018 (arXiv 1807.04511); `methods/delayed.py` has the schedule. A stage keeps
its inputs, and runs them again with its present weights when the gradient of the batch has come
down. So it keeps no activations, and runs every batch twice. Norms count a batch in their running
statistics both times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dglpipe.methods.base import RunContext
from dglpipe.methods.delayed import Delayed, DelayedRunner
from dglpipe.methods.runner import Runner
from dglpipe.methods.two_way import Entry
from dglpipe.pipeline.inputs import Arrival
from dglpipe.pipeline.link import Stash
from dglpipe.pipeline.stage import Stage
from dglpipe.pipeline.stage_module import Emit, cast_input


class FeaturesReplay(Delayed):
    """Delayed gradients of replayed features."""

    replays_forward = True

    def stash(self, stage: int, stages: int) -> Stash:
        """The inputs of K - j batches; the last stage keeps none."""
        later = stages - 1 - stage
        slots = later + 1 if later else 0
        return Stash(inputs=slots, from_above=slots, to_below=2 if stage else 0)

    def runner(self, context: RunContext) -> Runner:
        return FeaturesReplayRunner(context)


class FeaturesReplayRunner(DelayedRunner):
    """Keeps the inputs of every batch until its gradient has come down."""

    def ascend(self, stage: Stage, arrival: Arrival, emit: Emit | None) -> None:
        """Runs a batch without a graph; the last stage runs it in `graph` only."""
        step, inputs = arrival.item.round_step, arrival.batch
        if emit is not None:
            stage.seed(step)
            with torch.no_grad():
                emit(self._run(stage, cast_input(inputs, stage.settings.precision.name)))
            stage.count_rows(arrival.item.rows)
            inputs = inputs.clone()  # the buffer of a link is used again
        self.keep(stage, step, inputs=inputs.detach(), labels=arrival.labels.clone())

    def graph(self, stage: Stage, entry: Entry) -> tuple[Tensor, Tensor]:
        """Runs the batch again, with the random numbers of the first time."""
        stage.seed(entry.step)
        inputs = cast_input(entry.tensors["inputs"].detach(), stage.settings.precision.name)
        if stage.index:
            inputs.requires_grad_()
        return inputs, self._run(stage, inputs)

    def _run(self, stage: Stage, inputs: Tensor) -> Tensor:
        with stage.autocast():
            output: Tensor = stage.module.segments(inputs)
        return output

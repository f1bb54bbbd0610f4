"""Decoupled greedy learning: every stage learns in every step, from its own head.

Algorithm 1 of Belilovsky et al., ICML 2020. A stage sends its output before its own update, so the
output is computed with the weights before the step.
"""

from __future__ import annotations

from torch import Tensor

from dglpipe.methods.base import Method, RunContext, Runner
from dglpipe.methods.chain_runner import ChainRunner
from dglpipe.monitoring.timers import Kind
from dglpipe.pipeline.inputs import Arrival
from dglpipe.pipeline.message import ACTIVATIONS, LABELS
from dglpipe.pipeline.stage import Stage
from dglpipe.pipeline.stage_module import Emit


class Dgl(Method):
    """Synchronous decoupled greedy learning."""

    measures = True

    def runner(self, context: RunContext) -> Runner:
        return DglRunner(context)


class DglRunner(ChainRunner):
    """Trains all stages of a process on every batch."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self._next: Arrival | None = None

    def train(self, arrival: Arrival) -> None:
        """Trains every stage on the batch. A stage sends its output before its own update."""
        item = arrival.item
        total = item.total if item.total != item.rows else None
        for stage in self.stages:
            emit = self._emit(stage, arrival)
            stage.learn(arrival.batch, arrival.labels, item.round_step, emit, total, arrival.extras)
            self.timer.lap(stage.index, Kind.BUSY, "step")
            if self._next is not None:
                arrival, self._next = self._next, None

    def _emit(self, stage: Stage, arrival: Arrival) -> Emit | None:
        """A function that passes the features of `stage` to the next stage of the process or to
        the link."""
        field = self.fields.get(stage.index)
        if field is None:
            return None
        sender = self.sender
        if sender is None or stage is not self.stages[-1]:

            def keep(features: Tensor) -> None:
                parts = self.context.message(arrival, stage.index, features)
                batch = field.normalise(parts.pop(ACTIVATIONS))
                del parts[LABELS]
                self._next = arrival._replace(batch=batch, extras=parts)
                if stage.mark is not None:
                    stage.mark("forward")

            return keep

        def send(features: Tensor) -> None:
            self.timer.lap(stage.index, Kind.BUSY, "forward")
            sender.wait()
            self.timer.lap(stage.index, Kind.WAIT_OUTPUT)
            sender.send(arrival.item, self.context.message(arrival, stage.index, features))
            if stage.mark is not None:
                stage.mark("send")

        return send

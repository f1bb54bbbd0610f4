"""Decoupled greedy learning: every stage learns in every step, from its own head.

Algorithm 1 of Belilovsky et al., ICML 2020. A stage sends its output before its own update, so the
output is computed with the weights before the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dglpipe.methods.base import Method, RunContext
from dglpipe.methods.chain_runner import ChainRunner
from dglpipe.methods.down_links import DownLinks
from dglpipe.methods.events import Event
from dglpipe.methods.runner import Runner
from dglpipe.monitoring.timers import Kind
from dglpipe.pipeline.inputs import Arrival
from dglpipe.pipeline.message import ACTIVATIONS, LABELS
from dglpipe.pipeline.stage import Stage
from dglpipe.pipeline.stage_module import Emit


class Dgl(Method):
    """Synchronous decoupled greedy learning."""

    measures = True

    @property
    def carries_weights(self) -> bool:
        """True, unless a derived class has another runner."""
        return type(self).runner is Dgl.runner

    def runner(self, context: RunContext) -> Runner:
        follows = any(one.copies_following for one in self.local)
        return FollowingRunner(context) if follows else DglRunner(context)


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


class FollowingRunner(DglRunner):
    """Also carries weights down, for heads that copy the first segment of the next stage.

    After a step, every stage first sends its weights and then uses the weights that came down.
    """

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self._down = DownLinks(context, "weights", "weights")

    def run(self) -> Iterator[Event]:
        """As `ChainRunner.run`; a resumed run first sends the messages that were under way."""
        self._down.resend()
        yield from super().run()
        self._down.wait()

    def train(self, arrival: Arrival) -> None:
        """Trains every stage on the batch, and then exchanges weights."""
        super().train(arrival)
        step = arrival.item.step
        for stage in self.stages:
            if self._down.is_due(stage.index - 1, step):
                self._down.send(stage, step, self._weights(stage))
        for stage in self.stages:
            made = step - self._down.delays.get(stage.index, 0)
            if self._down.is_due(stage.index, made):
                (weights,) = self._down.take(stage, made)
                self.context.method.local[stage.index].follow(stage.module.auxiliary, weights)
                self.timer.lap(stage.index, Kind.BUSY, "weights")
        self._down.end_step(step)

    def check(self) -> None:
        super().check()
        self._down.check()

    def state(self, stages: Sequence[Stage]) -> Mapping[int, Any]:
        """The messages of each stage that are under way."""
        return {stage.index: self._down.state(stage) for stage in stages}

    def _weights(self, stage: Stage) -> Tensor:
        """The weights of the first segment of `stage` in one row, (1, n)."""
        form = self.context.plan.spec.following[stage.index - 1]
        assert form is not None
        own = (stage.module.segments.get_parameter(path) for path in form.parameters)
        return torch.cat([one.detach().flatten() for one in own])[None]

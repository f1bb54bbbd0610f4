"""Asynchronous learning played by one process, in an order that follows from the seed.

The paper's own experiments are of this kind. Its `turns` say who reads what; here it is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from dglpipe.data.batch_schedule import BatchItem
from dglpipe.methods.dgl import Chain
from dglpipe.methods.dgl_async.base import PacedChain, PacedWorker
from dglpipe.methods.dgl_async.draw_order import Turn, Turns
from dglpipe.methods.dgl_async.staleness import summarize
from dglpipe.methods.dgl_async.storage import Batch, BatchStore, StorageFormat
from dglpipe.monitoring.timers import Kind
from dglpipe.pipeline.stage import Stage


class SimulatedWorker(PacedWorker):
    """The one process of a simulation."""

    def _chain(self, stages: list[Stage]) -> Chain:
        method = self._method
        count = self.topology.layout.stages
        self._fields = dict(enumerate(self._spec.fields))
        # All stages of a checkpoint are of one moment, which each of their files says.
        self._turned = self._restored[0]["turns"] if self._restored else 0
        self._turns = Turns(method, count, self.plan, self.config.seed, self._turned)
        self._shelves = [
            BatchStore(StorageFormat(method, self._device, self._fields[j].dtype))
            for j in range(count - 1)
        ]
        self._outputs = [0] * count
        for j, more in self._restored.items():
            self._outputs[j] = more["outputs"]
            shelf = more.pop("shelf")  # memory that nobody else should hold
            if j:
                self._shelves[j - 1].restore(shelf)
        return PacedChain(stages, self._fields, None, self._timer, count, self._set_out(stages))

    def done_by(self) -> dict[int, int]:
        return {j: more["updates"] for j, more in self._restored.items()}

    def _save(self, step: int, stages: Sequence[Stage]) -> None:
        """Waits for the last stage to come to `step`: then what all of them hold belongs
        together, and a run that goes on from there ends with the same weights."""
        del stages
        if all(pace.updates >= step for pace in self._paces):
            super()._save(step, self.chain.stages)

    def _more(self, stages: Sequence[Stage]) -> dict[int, Any]:
        return {
            stage.index: {
                "turns": self._turned,
                "updates": pace.updates,
                "outputs": self._outputs[stage.index],
                "shelf": self._shelves[stage.index - 1].state() if stage.index else None,
            }
            for stage, pace in zip(stages, self._paces, strict=True)
        }

    def _ordered(self) -> Iterator[Any]:
        return iter(self._turns)

    def _wanted(self, order: Iterator[Any]) -> Iterator[BatchItem]:
        for event in order:
            if isinstance(event, BatchItem):
                yield event
            elif event.stage == 0:
                yield self.plan.fed(event.read)

    def _run(self) -> None:
        self._begin()
        for event in self._order:
            if isinstance(event, BatchItem):
                self._evaluate(event)
            else:
                self._turn(event)
        if self._window is None:  # the last stage had made its updates before the run was resumed
            self._window = self._opened, self._timer.snapshot()

    def _turn(self, turn: Turn) -> None:
        j, pace = turn.stage, self._paces[turn.stage]
        self._turned += 1
        self._timer.lap(j, Kind.OTHER)
        if j == 0:
            arrival = self._feed.take()
            batch = Batch(arrival.batch, arrival.labels)
            self._timer.lap(j, Kind.LOADING)
        else:
            batch = self._shelves[j - 1].take(turn.read)
        handed: list[Tensor] = []

        def emit(features: Tensor) -> None:
            handed.append(self._fields[j].normalise(features))
            if pace.stage.mark is not None:
                pace.stage.mark("forward")

        learns = not pace.is_done
        self.step = pace.updates + learns
        self._timer.steps_to(pace.updates + 1)
        pace.turn(*batch, emit if j in self._fields else None)
        for features in handed:
            self._shelves[j].put(turn.written, Batch(features, batch.labels), turn.gone)
        self._outputs[j] = turn.written
        self._timer.lap(j, Kind.BUSY, "step")
        if learns:
            self._updated(pace, len(batch.labels))

    def _staleness(self, stage: Stage) -> dict[str, Any]:
        j = stage.index
        updates, outputs = self._paces[j].updates, self._outputs[j] if j in self._fields else 0
        if j == 0:
            return summarize(None, updates, outputs)
        shelf, replay = self._shelves[j - 1], self._turns.replays[j - 1]
        waits = self._turns.skipped[j]
        return summarize(replay, updates, outputs, waits=waits, buffer_bytes=shelf.most_bytes)

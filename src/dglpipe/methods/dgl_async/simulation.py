"""Asynchronous learning simulated by one process, in an order determined by the seed.

The experiments of the paper are simulations of this kind. `DrawOrder` determines which stage reads
which batch; `SimulatedRunner` does the computation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from dglpipe.config import AsyncConfig
from dglpipe.data.batch_schedule import BatchItem
from dglpipe.methods.base import RunContext
from dglpipe.methods.dgl_async.base import AsyncRunner
from dglpipe.methods.dgl_async.draw_order import Draw, DrawOrder
from dglpipe.methods.dgl_async.staleness import summarize
from dglpipe.methods.dgl_async.storage import Batch, BatchStore, StorageFormat
from dglpipe.methods.events import Event, Update
from dglpipe.monitoring.timers import Kind
from dglpipe.pipeline.stage import Stage


class SimulatedRunner(AsyncRunner):
    """Runs all stages of a simulation in one process."""

    def __init__(self, context: RunContext, settings: AsyncConfig) -> None:
        restored = context.restored
        done = {j: state["updates"] for j, state in restored.items()}
        super().__init__(context, settings, None, done)
        count = len(self.stages)
        # All stages are saved at the same draw, so every file has the same number of draws.
        self._drawn = restored[0]["turns"] if restored else 0
        seed = context.plan.config.seed
        self._order = DrawOrder(settings, count, self.schedule, seed, self._drawn)
        self._stores = [
            BatchStore(StorageFormat(settings, context.device, self.fields[j].dtype))
            for j in range(count - 1)
        ]
        self._outputs = [0] * count
        for j, state in restored.items():
            self._outputs[j] = state["outputs"]
            stored = state.pop("shelf")  # the only reference: the store makes its own copy
            if j:
                self._stores[j - 1].restore(stored)
        self._events, ahead = itertools.tee(self._order)
        # The data set has the test batches, and the batches that stage 0 reads.
        self.inputs = context.open_data(
            event if isinstance(event, BatchItem) else self.schedule.fed(event.read)
            for event in ahead
            if isinstance(event, BatchItem) or event.stage == 0
        )

    def run(self) -> Iterator[Event]:
        """Executes every draw and every evaluation, in order."""
        for event in self._events:
            if isinstance(event, BatchItem):
                yield from self.evaluate(event)
            else:
                yield from self._draw(event)

    def _draw(self, draw: Draw) -> Iterator[Update]:
        """The stage of the draw reads a batch, learns unless it is done, and writes its output."""
        j, updates = draw.stage, self.updates[draw.stage]
        self._drawn += 1
        self.timer.lap(j, Kind.OTHER)
        if j == 0:
            arrival = self.inputs.take()
            batch = Batch(arrival.batch, arrival.labels)
            self.timer.lap(j, Kind.LOADING)
        else:
            batch = self._stores[j - 1].take(draw.read)
        made: list[Batch] = []

        def emit(features: Tensor) -> None:
            extras = self.extras(j, batch, features)
            made.append(Batch(self.fields[j].normalise(features), batch.labels, extras))
            if updates.stage.mark is not None:
                updates.stage.mark("forward")

        learns = not updates.is_done
        self.step = updates.count + learns
        self.timer.steps_to(updates.count + 1)
        emits = emit if j in self.fields else None
        updates.learn(batch.features, batch.labels, emits, batch.extras)
        for output in made:
            self._stores[j].put(draw.written, output, draw.replaced)
        self._outputs[j] = draw.written
        self.timer.lap(j, Kind.BUSY, "step")
        if learns:
            # The last stage to make a step completes its checkpoint: now the states of all stages
            # belong together, and a run that resumes from them ends with the same weights.
            is_complete = all(one.count >= updates.count for one in self.updates)
            yield self.update(updates, len(batch.labels), self.stages if is_complete else [])

    def state(self, stages: Sequence[Stage]) -> Mapping[int, Any]:
        """Number of draws, updates and outputs, and the stored batches, of every stage."""
        return {
            stage.index: {
                "turns": self._drawn,
                "updates": self.updates[stage.index].count,
                "outputs": self._outputs[stage.index],
                "shelf": self._stores[stage.index - 1].state() if stage.index else None,
            }
            for stage in stages
        }

    def staleness(self, stage: Stage) -> dict[str, Any]:
        j = stage.index
        updates, outputs = self.updates[j].count, self._outputs[j] if j in self.fields else 0
        if j == 0:
            return summarize(None, updates, outputs)
        store, replay = self._stores[j - 1], self._order.replays[j - 1]
        waits = self._order.skipped[j]
        return summarize(replay, updates, outputs, waits=waits, buffer_bytes=store.most_bytes)

"""Sequential learning: one stage after the other, those below it frozen.

In round r (`BatchItem.round`) stage r learns. The stages below it are in evaluation mode and only
hand on; to those above it come messages without rows, so that every process keeps in step
(the layer-wise training that the paper compares with).
"""

from __future__ import annotations

from collections.abc import Sequence

from dglpipe.data.batch_schedule import BatchItem
from dglpipe.methods.dgl import Chain
from dglpipe.monitoring.timers import Kind
from dglpipe.pipeline.inputs import Arrival
from dglpipe.pipeline.message import ACTIVATIONS, LABELS
from dglpipe.pipeline.stage import Stage


class SequentialChain(Chain):
    """Runs a batch up to the stage whose turn it is."""

    _round = 0

    def train(self, arrival: Arrival) -> None:
        batch, item = arrival.batch, arrival.item
        if item.round != self._round:
            self._round = item.round
            self.eval_mode(False)
        total = item.total if item.total != item.rows else None
        for stage in self.stages:
            if stage.index < item.round:
                batch = self._fields[stage.index].normalise(stage.infer(batch))
                self._timer.lap(stage.index, Kind.BUSY, "forward")
            elif stage.index == item.round:
                stage.learn(batch, arrival.labels, item.round_step, None, total)
                self._timer.lap(stage.index, Kind.BUSY, "step")
        if self._sender is None:
            return
        last = self.stages[-1].index
        self._sender.wait()
        self._timer.lap(last, Kind.WAIT_OUTPUT)
        below = last < item.round
        parts = {LABELS: arrival.labels, ACTIVATIONS: batch} if below else {}
        self._sender.send(item if below else item._replace(rows=0), parts)
        self._timer.lap(last, Kind.BUSY, "send")

    def learners(self, item: BatchItem) -> Sequence[Stage]:
        return [stage for stage in self.stages if stage.index == item.round]

    def eval_mode(self, on: bool) -> None:
        for stage in self.stages:
            stage.eval_mode(on or stage.index < self._round)

"""Sequential learning: one stage after the other, with the stages below frozen.

In round r (`BatchItem.round`) stage r learns. The stages below are in evaluation mode and only
compute their output. The stages above receive messages without rows, so that every process is at
the same step. The paper compares DGL with this layer-wise training.
"""

from __future__ import annotations

from collections.abc import Sequence

from dglpipe.data.batch_schedule import BatchItem
from dglpipe.methods.base import RunContext
from dglpipe.methods.chain_runner import ChainRunner
from dglpipe.methods.dgl import Dgl
from dglpipe.methods.emission import Emission
from dglpipe.methods.runner import Runner
from dglpipe.monitoring.timers import Kind
from dglpipe.pipeline.inputs import Arrival
from dglpipe.pipeline.message import ACTIVATIONS, LABELS
from dglpipe.pipeline.stage import Stage


class Sequential(Dgl):
    """Trains one stage after the other, each for `epochs` epochs."""

    trains_in_rounds = True

    def runner(self, context: RunContext) -> Runner:
        return SequentialRunner(context)


class SequentialRunner(ChainRunner):
    """Runs each batch through the stages up to the stage that learns in this round."""

    _round = 0

    def train(self, arrival: Arrival) -> None:
        """Trains the stage of this round on the output of the stages below."""
        item = arrival.item
        if item.round != self._round:
            self._round = item.round
            self.eval_mode(False)
        total = item.total if item.total != item.rows else None
        for stage in self.stages:
            if stage.index < item.round:
                features = stage.infer(arrival.batch)
                extras = self.context.extras(
                    Emission(stage.index, arrival.batch, features, arrival.labels, arrival.extras)
                )
                batch = self.fields[stage.index].normalise(features)
                arrival = arrival._replace(batch=batch, extras=extras)
                self.timer.lap(stage.index, Kind.BUSY, "forward")
            elif stage.index == item.round:
                stage.learn(
                    arrival.batch, arrival.labels, item.round_step, None, total, arrival.extras
                )
                self.timer.lap(stage.index, Kind.BUSY, "step")
        self._send(arrival)

    def _send(self, arrival: Arrival) -> None:
        """Sends the batch, or a message without rows if no stage above learns in this round."""
        if self.sender is None:
            return
        last, item = self.stages[-1].index, arrival.item
        self.sender.wait()
        self.timer.lap(last, Kind.WAIT_OUTPUT)
        if last < item.round:
            parts = {LABELS: arrival.labels, ACTIVATIONS: arrival.batch, **arrival.extras}
            self.sender.send(item, parts)
        else:
            self.sender.send(item._replace(rows=0), {})
        self.timer.lap(last, Kind.BUSY, "send")

    def learners(self, item: BatchItem) -> Sequence[Stage]:
        return [stage for stage in self.stages if stage.index == item.round]

    def eval_mode(self, on: bool) -> None:
        for stage in self.stages:
            stage.eval_mode(on or stage.index < self._round)

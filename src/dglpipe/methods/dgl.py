"""The consecutive stages of one process, from what comes in to what goes out.

P = K is the pipeline: a chain of one stage a process. P = 1 is the in-process loop of the
paper: all stages in one chain. Both run this code, and what a stage hands to a neighbour in
the same process is what a link would have carried.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dglpipe.data.batch_schedule import BatchItem
from dglpipe.monitoring.timers import Kind, Timer
from dglpipe.pipeline.inputs import Arrival
from dglpipe.pipeline.message import ACTIVATIONS, ENSEMBLE, LABELS, Field
from dglpipe.pipeline.stage import Emit, Stage


class Outgoing(Protocol):
    """The sending end of a link."""

    def wait(self) -> None:
        """Returns when the next message may be sent."""

    def send(self, item: BatchItem, parts: Mapping[str, Tensor]) -> None:
        """Sends `parts`, each (rows, ...)."""


class Chain:
    """Runs a batch through the stages of a process.

    Args:
        stages: the stages of this process, in order.
        fields: what each stage but the last of the network hands on, by stage.
        sender: the link to the process above; None at the last.
        count: K.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        fields: Mapping[int, Field],
        sender: Outgoing | None,
        timer: Timer,
        count: int,
    ) -> None:
        self.stages = stages
        self._fields = fields
        self._sender = sender
        self._timer = timer
        self._count = count
        self._handed: Tensor | None = None
        if timer.is_tracing:
            for stage in stages:
                stage.mark = functools.partial(timer.lap, stage.index, Kind.BUSY)
        self._ensemble_hits = torch.zeros((), dtype=torch.int64)

    def train(self, arrival: Arrival) -> None:
        """Every stage learns from the batch; each hands its output on before it learns."""
        batch, item = arrival.batch, arrival.item
        for stage in self.stages:
            emit = self._emit(stage, arrival)
            total = item.total if item.total != item.rows else None
            stage.learn(batch, arrival.labels, item.round_step, emit, total)
            self._timer.lap(stage.index, Kind.BUSY, "step")
            if self._handed is not None:
                batch, self._handed = self._handed, None

    def learners(self, item: BatchItem) -> Sequence[Stage]:
        """The stages that learn from `item`."""
        del item
        return self.stages

    def _emit(self, stage: Stage, arrival: Arrival) -> Emit | None:
        field = self._fields.get(stage.index)
        if field is None:
            return None
        sender = self._sender
        if sender is None or stage is not self.stages[-1]:

            def keep(features: Tensor) -> None:
                self._handed = field.normalise(features)
                if stage.mark is not None:
                    stage.mark("forward")

            return keep

        def send(features: Tensor) -> None:
            self._timer.lap(stage.index, Kind.BUSY, "forward")
            sender.wait()
            self._timer.lap(stage.index, Kind.WAIT_OUTPUT)
            sender.send(arrival.item, {LABELS: arrival.labels, ACTIVATIONS: features.detach()})
            if stage.mark is not None:
                stage.mark("send")

        return send

    def evaluate(self, arrival: Arrival) -> None:
        """Counts loss and hits of every exit, and of the ensemble at the last stage."""
        batch = arrival.batch
        ensemble = arrival.ensemble
        for stage in self.stages:
            if stage.learner.is_exit:
                features, exit_ = stage.evaluate(batch, arrival.labels)
                weighted = exit_ * 2.0 ** (stage.index - self._count + 1)
                ensemble = weighted if ensemble is None else ensemble + weighted
            else:
                features = stage.infer(batch)
            field = self._fields.get(stage.index)
            if field is None:
                assert ensemble is not None
                self._count_ensemble(ensemble, arrival.labels)
            else:
                batch = field.normalise(features)
        if self._sender is not None and ensemble is not None:
            parts = {LABELS: arrival.labels, ENSEMBLE: ensemble, ACTIVATIONS: batch}
            self._sender.send(arrival.item, parts)

    def _count_ensemble(self, ensemble: Tensor, labels: Tensor) -> None:
        hits = (ensemble.argmax(dim=1) == labels).sum()
        self._ensemble_hits = self._ensemble_hits.to(hits.device) + hits

    def ensemble_hits(self) -> int | None:
        """Hits since the last call, in the process of the last stage, else None; waits for
        the device."""
        if self.stages[-1].index in self._fields:
            return None
        hits = int(self._ensemble_hits)
        self._ensemble_hits.zero_()
        return hits

    def eval_mode(self, on: bool) -> None:
        """Switches all stages to testing or back to training."""
        for stage in self.stages:
            stage.eval_mode(on)

    def flush(self) -> None:
        """Returns when the last message has left."""
        if self._sender is not None:
            self._sender.wait()

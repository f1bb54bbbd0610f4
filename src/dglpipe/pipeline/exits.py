"""Evaluation of the exits of the stages of one process, and of their ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dglpipe.data.batch_schedule import BatchItem
from dglpipe.pipeline.inputs import Arrival
from dglpipe.pipeline.message import ACTIVATIONS, ENSEMBLE, LABELS, Field
from dglpipe.pipeline.stage import Stage


class Sending(Protocol):
    """The sending end of a link."""

    def wait(self) -> None:
        """Returns when the next message may be sent."""

    def send(self, item: BatchItem, parts: Mapping[str, Tensor]) -> None:
        """Sends `parts`, each (rows, ...)."""


class ExitEvaluator:
    """Counts loss and hits of every exit, and hits of the ensemble at the last stage.

    The ensemble weights the softmax of exit j by 2^j (section 4.2 of the paper).

    Args:
        stages: the stages of this process, in order.
        fields: stage -> activations that the stage sends, for every stage except the last.
        sender: the link to the next process; None in the last process.
        count: K.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        fields: Mapping[int, Field],
        sender: Sending | None,
        count: int,
    ) -> None:
        self._stages = stages
        self._fields = fields
        self._sender = sender
        self._count = count
        self._hits = torch.zeros((), dtype=torch.int64)

    def evaluate(self, arrival: Arrival) -> None:
        """Runs a test batch through the stages and sends it to the next process."""
        batch = arrival.batch
        ensemble = arrival.ensemble
        for stage in self._stages:
            if stage.module.is_exit:
                features, exit_ = stage.evaluate(batch, arrival.labels)
                weighted = exit_ * 2.0 ** (stage.index - self._count + 1)
                ensemble = weighted if ensemble is None else ensemble + weighted
            else:
                features = stage.infer(batch)
            field = self._fields.get(stage.index)
            if field is None:
                assert ensemble is not None
                self.count_ensemble(ensemble, arrival.labels)
            else:
                batch = field.normalise(features)
        if self._sender is not None:
            parts = {LABELS: arrival.labels, ACTIVATIONS: batch}
            if ensemble is not None:  # None: no stage below the last is an exit
                parts[ENSEMBLE] = ensemble
            self._sender.send(arrival.item, parts)

    def count_ensemble(self, ensemble: Tensor, labels: Tensor) -> None:
        """Counts the hits of `ensemble` (B, N) for labels (B,)."""
        hits = (ensemble.argmax(dim=1) == labels).sum()
        self._hits = self._hits.to(hits.device) + hits

    def ensemble_hits(self) -> int | None:
        """Hits since the last call in the process of the last stage, else None; waits for the
        device."""
        if self._stages[-1].index in self._fields:
            return None
        hits = int(self._hits)
        self._hits.zero_()
        return hits

    def forget(self) -> None:
        """Drops loss and hits since the last evaluation."""
        self._hits.zero_()
        for stage in self._stages:
            stage.test_totals()

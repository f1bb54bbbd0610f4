"""Loss and hits of one exit, summed over batches without synchronizing with the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the rows of a number of batches."""

    loss: float
    correct: int
    rows: int


class ExitMeter:
    """Stores the loss and the hits of each batch and sums them later.

    A step only stores two small tensors. Small operations between large operations are slow,
    because the caches no longer hold their code, so the meter sums once every `CAPACITY` steps.
    """

    CAPACITY = 256

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._rows = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: mean loss (), logits (B, N) and labels (B,)."""
        if len(self._losses) == self.CAPACITY:
            self._fold()
        self._losses.append(loss.detach())
        self._hits.append(logits.argmax(dim=1) == labels)

    def add_rows(self, rows: int) -> None:
        """Adds rows without a loss."""
        self._rows += rows

    def take(self) -> Totals:
        """Returns the sums since the last call; synchronizes with the device."""
        self._fold()
        loss, correct = torch.stack(self._sums).sum(dim=0).tolist() if self._sums else (0.0, 0)
        totals = Totals(loss, int(correct), self._rows)
        self._sums, self._rows = [], 0
        return totals

    def state(self) -> dict[str, Any]:
        """The sums since the last `take`, for a checkpoint."""
        self._fold()
        sums = torch.stack(self._sums) if self._sums else None
        return {"sums": sums, "rows": self._rows}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Continues with the sums of a result of `state`."""
        sums = state["sums"]
        self._sums = [] if sums is None else list(sums.to(device).unbind())
        self._rows = state["rows"]

    def _fold(self) -> None:
        """Replaces the stored tensors by one tensor of sums, without synchronizing."""
        if not self._losses:
            return
        rows = [len(hits) for hits in self._hits]
        losses = torch.stack(torch._foreach_mul(self._losses, rows))
        hits = torch.cat(self._hits)
        self._sums.append(
            torch.stack([values.sum(dtype=torch.float64) for values in (losses, hits)])
        )
        self._rows += sum(rows)
        self._losses, self._hits = [], []

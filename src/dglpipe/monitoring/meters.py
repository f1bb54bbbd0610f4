"""Loss and hits of one exit, summed over batches without synchronizing with the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the rows of a number of batches.

    Attributes:
        loss: of all rows. Losses of `ExitMeter.add_loss`, which may be of fewer rows, are scaled.
        has_loss: whether any loss was added.
    """

    loss: float
    correct: int
    rows: int
    has_loss: bool = True


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
        self._alone: list[Tensor] = []
        self._alone_rows = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: mean loss (), logits (B, N) and labels (B,)."""
        if len(self._losses) == self.CAPACITY:
            self._fold()
        self._losses.append(loss.detach())
        self._hits.append(logits.argmax(dim=1) == labels)

    def add_rows(self, rows: int) -> None:
        """Adds rows without a loss."""
        self._rows += rows

    def add_loss(self, loss: Tensor, rows: int) -> None:
        """Adds the mean loss () of `rows` rows that `add_rows` counts at another time."""
        self._alone.append(loss.detach().to(torch.float64) * rows)
        self._alone_rows += rows
        if len(self._alone) == self.CAPACITY:
            self._alone = [torch.stack(self._alone).sum()]

    def take(self) -> Totals:
        """Returns the sums since the last call; synchronizes with the device."""
        self._fold()
        loss, correct = torch.stack(self._sums).sum(dim=0).tolist() if self._sums else (0.0, 0)
        has_loss = bool(self._sums or self._alone)
        if self._alone:
            loss = torch.stack(self._alone).sum().item() * self._rows / self._alone_rows
        totals = Totals(loss, int(correct), self._rows, has_loss)
        self._sums, self._rows, self._alone, self._alone_rows = [], 0, [], 0
        return totals

    def state(self) -> dict[str, Any]:
        """The sums since the last `take`, for a checkpoint."""
        self._fold()
        sums = torch.stack(self._sums) if self._sums else None
        alone = torch.stack(self._alone) if self._alone else None
        return {"sums": sums, "rows": self._rows, "alone": alone, "alone_rows": self._alone_rows}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Continues with the sums of a result of `state`."""
        sums, alone = state["sums"], state["alone"]
        self._sums = [] if sums is None else list(sums.to(device).unbind())
        self._alone = [] if alone is None else list(alone.to(device).unbind())
        self._rows, self._alone_rows = state["rows"], state["alone_rows"]

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

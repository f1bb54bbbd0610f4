"""What one exit got right: loss and hits, summed over batches without waiting for the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the rows of some batches."""

    loss: float
    correct: int
    rows: int


class ExitMeter:
    """Collects what each batch gave and sums it when asked.

    A step only notes two small tensors: small operations between large ones are slow, for
    their code has left the caches, so the sums are made once in many steps.
    """

    CAPACITY = 256

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._rows = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Notes a mean loss () of logits (B, N) and labels (B,)."""
        if len(self._losses) == self.CAPACITY:
            self._fold()
        self._losses.append(loss.detach())
        self._hits.append(logits.argmax(dim=1) == labels)

    def add_rows(self, rows: int) -> None:
        """Notes rows without a loss."""
        self._rows += rows

    def take(self) -> Totals:
        """The sums since the last call; waits for the device."""
        self._fold()
        loss, correct = torch.stack(self._sums).sum(dim=0).tolist() if self._sums else (0.0, 0)
        totals = Totals(loss, int(correct), self._rows)
        self._sums, self._rows = [], 0
        return totals

    def _fold(self) -> None:
        """Sums what was noted, on the device, which nobody waits for here."""
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

"""Loss and hits of an exit over batches of any number and size."""

from __future__ import annotations

import pytest
import torch

from dglpipe.monitoring.meters import ExitMeter, Totals


@pytest.mark.parametrize("batches", [1, 5, ExitMeter.CAPACITY, 2 * ExitMeter.CAPACITY + 3])
def test_sums_cover_all_rows(batches):
    torch.manual_seed(0)
    counter = ExitMeter()
    loss, correct, total = 0.0, 0, 0
    for batch in range(batches):
        rows = 1 + batch % 3
        logits, labels = torch.randn(rows, 4), torch.randint(0, 4, (rows,))
        mean = torch.rand(())
        counter.add(mean, logits, labels)
        loss += mean.item() * rows
        correct += int((logits.max(dim=1).indices == labels).sum())
        total += rows
    totals = counter.take()
    assert (totals.correct, totals.rows) == (correct, total)
    assert totals.loss == pytest.approx(loss, rel=1e-5)


def test_take_resets_the_sums():
    counter = ExitMeter()
    assert counter.take() == Totals(0.0, 0, 0)
    counter.add(torch.tensor(2.0), torch.eye(3), torch.arange(3))
    assert counter.take() == Totals(6.0, 3, 3)
    assert counter.take() == Totals(0.0, 0, 0)


def test_it_does_not_keep_the_graph():
    counter = ExitMeter()
    logits = torch.randn(2, 3, requires_grad=True)
    counter.add(logits.sum(), logits, torch.zeros(2, dtype=torch.int64))
    assert not any(kept.requires_grad for kept in (*counter._losses, *counter._hits))

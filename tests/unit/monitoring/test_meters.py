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
    assert counter.take() == Totals(0.0, 0, 0, has_loss=False)
    counter.add(torch.tensor(2.0), torch.eye(3), torch.arange(3))
    assert counter.take() == Totals(6.0, 3, 3)
    assert counter.take() == Totals(0.0, 0, 0, has_loss=False)


def test_losses_of_other_rows_count_for_all_rows():
    """The loss of a synthesiser comes some batches after the rows of its stage."""
    counter, resumed = ExitMeter(), ExitMeter()
    for _ in range(ExitMeter.CAPACITY + 1):
        counter.add_rows(2)
        counter.add_loss(torch.tensor(3.0), 2)
    counter.add_rows(4)
    rows = 2 * ExitMeter.CAPACITY + 6
    resumed.restore(counter.state(), torch.device("cpu"))
    for one in (counter, resumed):
        assert one.take() == Totals(3.0 * rows, 0, rows)
        assert one.take() == Totals(0.0, 0, 0, has_loss=False)


def test_it_does_not_keep_the_graph():
    counter = ExitMeter()
    logits = torch.randn(2, 3, requires_grad=True)
    counter.add(logits.sum(), logits, torch.zeros(2, dtype=torch.int64))
    assert not any(kept.requires_grad for kept in (*counter._losses, *counter._hits))


@pytest.mark.parametrize("before", [0, 1, ExitMeter.CAPACITY + 5])
def test_sums_continue_from_a_state(before):
    torch.manual_seed(0)
    whole, first, second = ExitMeter(), ExitMeter(), ExitMeter()
    for batch in range(before + 7):
        given = torch.rand(()), torch.randn(3, 4), torch.randint(0, 4, (3,))
        whole.add(*given)
        (first if batch < before else second).add(*given)
        if batch == before - 1:
            whole.state()  # a run without interruption writes the checkpoint too
    resumed = ExitMeter()
    first.add_rows(2)
    whole.add_rows(2)
    resumed.restore(first.state(), torch.device("cpu"))
    for loss, hits in zip(second._losses, second._hits, strict=True):
        resumed._losses.append(loss)
        resumed._hits.append(hits)
    assert resumed.take() == whole.take()
    assert resumed.state() == ExitMeter().state()

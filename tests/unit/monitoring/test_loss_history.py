"""The losses of all steps, each with its step."""

from __future__ import annotations

import pytest
import torch

from dglpipe.monitoring.loss_history import LossHistory


@pytest.mark.parametrize("count", [1, LossHistory.CAPACITY, 2 * LossHistory.CAPACITY + 3])
@pytest.mark.parametrize("parts", [1, 3])
def test_every_loss_has_its_step(count, parts):
    history = LossHistory()
    for step in range(5, 5 + count):
        for part in range(parts):
            history.add(torch.tensor(float(10 * step + part)))
        history.end_step(step)
    expected = [(step, 10.0 * step + part) for step in range(5, 5 + count) for part in range(parts)]
    assert history.take() == expected
    assert history.take() == []


def test_a_step_without_a_loss_is_left_out():
    history = LossHistory()
    history.end_step(1)
    history.add(torch.tensor(2.0))
    history.end_step(2)
    history.end_step(3)
    assert history.take() == [(2, 2.0)]


def test_cleared_losses_are_gone():
    history = LossHistory()
    history.add(torch.tensor(2.0))
    history.end_step(1)
    history.clear()
    assert history.take() == []


def test_it_does_not_keep_the_graph():
    history = LossHistory()
    history.add(torch.ones(3, requires_grad=True).sum())
    assert not history._losses[0].requires_grad

"""The cost of checkpoints, from the training lines of one run."""

from __future__ import annotations

import pytest

from benchmarks.faults import checkpoint_cost


def lines(seconds, rows=128):
    """Training lines of two stages; `seconds(step)` is the time of a step of the last stage."""
    return [
        {"kind": "train", "stage": stage, "step": step, "samples_per_second": rows / time}
        for step in range(1, 201)
        for stage, time in ((0, 9.0), (1, seconds(step)))
    ]


def test_a_run_without_cost():
    assert checkpoint_cost.ratios(lines(lambda step: 0.5)) == pytest.approx([1.0] * 3)


def test_the_time_after_a_checkpoint_is_lost():
    """One second in the step after a checkpoint, of 26 with it."""
    found = checkpoint_cost.ratios(lines(lambda step: 1.5 if step % 50 == 1 else 0.5))
    assert found == pytest.approx([25 / 26] * 3)

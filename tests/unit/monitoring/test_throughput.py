"""The part of a run in which throughput is measured."""

from __future__ import annotations

import pytest

from dglpipe.monitoring.throughput import ThroughputWindow
from dglpipe.monitoring.timers import Kind, Spent

SECOND = 10**9


def run(
    steps: int, done: int = 0, *, start: int = 5, evaluated_after: int | None = None
) -> ThroughputWindow:
    """A run whose steps take one second and 4 rows each, after `start` seconds of preparation.

    Args:
        evaluated_after: a step after which an evaluation takes 100 seconds.
    """
    spent: Spent = {(0, Kind.OTHER): start * SECOND}
    window = ThroughputWindow(steps, done)
    window.begin(dict(spent))
    for step in range(done + 1, steps + 1):
        spent[0, Kind.BUSY] = spent.get((0, Kind.BUSY), 0) + SECOND
        window.add_rows(4)
        window.after_step(step, lambda: dict(spent))
        if step == evaluated_after:
            spent[0, Kind.EVALUATING] = 100 * SECOND
    return window


@pytest.mark.parametrize(
    ("steps", "done", "measured"),
    [(10, 0, 8), (12, 0, 9), (40, 0, 30), (400, 0, 390), (110, 100, 8), (500, 100, 390)],
)
def test_window_opens_after_ten_steps_or_a_quarter(steps, done, measured):
    window = run(steps, done)
    assert window.spent() == {(0, Kind.OTHER): 0, (0, Kind.BUSY): measured * SECOND}
    assert window.rate() == 4.0


@pytest.mark.parametrize(("steps", "done"), [(9, 0), (1, 0), (109, 100)])
def test_short_run_has_shares_of_time_but_no_rate(steps, done):
    window = run(steps, done)
    assert window.rate() is None
    assert window.spent()


def test_run_of_three_steps_is_measured_from_the_start_of_training():
    assert run(3).spent() == {(0, Kind.OTHER): 0, (0, Kind.BUSY): 3 * SECOND}


@pytest.mark.parametrize("step", [5, 15, 20])
def test_evaluation_does_not_count(step):
    assert run(20, evaluated_after=step).rate() == 4.0


def test_there_is_no_rate_before_the_last_step():
    window = ThroughputWindow(20, 0)
    window.begin({})
    for step in range(1, 20):
        window.add_rows(4)
        window.after_step(step, lambda: {(0, Kind.BUSY): 1})
    assert window.spent() is None
    assert window.rate() is None


def test_snapshots_are_taken_at_both_ends_only():
    window, taken = ThroughputWindow(40, 0), []
    window.begin({})
    for step in range(1, 41):
        window.after_step(step, lambda step=step: taken.append(step) or {})
    assert taken == [10, 40]


def test_close_ends_a_window_that_no_step_has_ended():
    window = ThroughputWindow(20, 20)
    window.begin({(0, Kind.BUSY): 1})
    window.close(lambda: {(0, Kind.BUSY): 3})
    assert window.spent() == {(0, Kind.BUSY): 2}
    assert window.rate() is None


def test_close_keeps_a_closed_window():
    window = run(20)
    window.close(lambda: {(0, Kind.BUSY): 10**15})
    assert window.rate() == 4.0

"""The part of a run in which throughput and shares of time are measured."""

from __future__ import annotations

from collections.abc import Callable

from dglpipe.monitoring.timers import Spent, between, seconds

FEWEST_STEPS = 10
"""Shorter runs, or shorter remainders of resumed runs, have no throughput."""


class ThroughputWindow:
    """Rows and time from the end of step w to the end of the last training step.

    w = min(10, a quarter of the steps): by then the pipeline is full and the loader has started.
    The time of evaluations does not count.

    Args:
        steps: training steps of the run.
        done: steps before the run was resumed; 0 for a new run.
    """

    def __init__(self, steps: int, done: int) -> None:
        self._steps = steps
        self._is_long = steps - done >= FEWEST_STEPS
        self._opens_after = done + min(10, (steps - done) // 4)
        self._rows = 0
        self._start: Spent = {}
        self._spent: Spent | None = None

    def begin(self, snapshot: Spent) -> None:
        """Records the `snapshot` of the timer at the start of training."""
        self._start = snapshot

    def add_rows(self, rows: int) -> None:
        """Counts the rows of a step."""
        self._rows += rows

    def after_step(self, step: int, snapshot: Callable[[], Spent]) -> None:
        """Opens or closes the window after `step`."""
        if step == self._opens_after:
            self._start = snapshot()
            self._rows = 0
        elif step == self._steps:
            self._spent = between(self._start, snapshot())

    def close(self, snapshot: Callable[[], Spent]) -> None:
        """Closes the window at the end of training, if no step has closed the window."""
        if self._spent is None:
            self._spent = between(self._start, snapshot())

    def spent(self) -> Spent | None:
        """Time in the window by stage and kind; None before the window closes."""
        return self._spent

    def rate(self) -> float | None:
        """Rows per second; None for a short run, and before the window is closed."""
        if not self._spent or not self._rows or not self._is_long:
            return None
        return self._rows / seconds(self._spent)

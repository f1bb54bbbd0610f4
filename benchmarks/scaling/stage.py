"""An emulated stage: it sleeps instead of computing. Links and messages are real."""

from __future__ import annotations

import time

import torch

from benchmarks.scaling.case import Case

ROWS = 8
"""Rows of a batch."""


def compute(seconds: float, spin: float = 0.0) -> None:
    """Takes `seconds`: sleeps, and spins for the share `spin`."""
    end = time.perf_counter() + seconds
    if spin:
        until = time.perf_counter() + seconds * spin
        while time.perf_counter() < until:
            pass
    sleep_until(end)


def sleep_until(end: float) -> None:
    """Sleeps until `end`, in seconds of `perf_counter`."""
    left = end - time.perf_counter()
    if left > 0:
        time.sleep(left)


class StepTimer:
    """Draws the time of each step of a stage, and measures the time of a step after warm-up."""

    def __init__(self, rank: int, case: Case) -> None:
        self._case = case
        self._seconds = case.mean if case.way == "ddp" else case.seconds(rank)
        self._generator = torch.Generator().manual_seed(rank)
        self._start = time.perf_counter()

    def draw(self) -> float:
        """Seconds of the next step."""
        if not self._case.jitter:
            return self._seconds
        change = 2 * float(torch.rand((), generator=self._generator)) - 1
        return self._seconds * (1 + self._case.jitter * change)

    def end_step(self, step: int) -> None:
        """Starts the measurement if `step` is the last one of the warm-up."""
        if step == self._case.warm_up:
            self._start = time.perf_counter()

    def seconds_a_step(self) -> float:
        return (time.perf_counter() - self._start) / (self._case.steps - self._case.warm_up)

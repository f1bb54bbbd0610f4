"""The timer of a process whose device works behind the host, without waiting for it.

A lap is an event on the device's current stream. Its time is read when it has long passed, or
when somebody asks. So computing is what the device computed, and waiting for input is how long
its stream waited for the link.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter_ns
from typing import Any, NamedTuple, Protocol

import torch

from dglpipe.monitoring.timers import Kind, Span, Spent, Timer

PENDING = 256
"""Laps behind which those that have passed are read."""


class Event(Protocol):
    """What `torch.Event` has."""

    def record(self) -> None: ...

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: Any, /) -> float:
        """Milliseconds."""


class _Lap(NamedTuple):
    event: Event
    stage: int
    kind: Kind
    what: str | None
    step: int


class CudaTimer(Timer):
    """Gives its laps to another timer, with the times of the device.

    Args:
        device: whose current stream is measured.
        timer: keeps the times; nobody else tells it any.
    """

    def __init__(self, device: torch.device, timer: Timer) -> None:
        super().__init__()
        self.is_tracing = timer.is_tracing
        self._device = device
        self._timer = timer
        self._laps: deque[_Lap] = deque()
        self._unused: list[Event] = []
        self._step = 0
        self._before = self._event()
        self._before.record()
        self._before.synchronize()
        self._now = perf_counter_ns()
        timer.start(self._now)

    def lap(self, stage: int, kind: Kind, what: str | None = None) -> None:
        event = self._unused.pop() if self._unused else self._event()
        event.record()
        self._laps.append(_Lap(event, stage, kind, what, self._step))
        if len(self._laps) > PENDING and self._laps[0].event.query():
            self._read()

    def steps_to(self, step: int) -> None:
        self._step = step

    def snapshot(self) -> Spent:
        """As of the last lap; waits until the device has come there."""
        self._read_all()
        return self._timer.snapshot()

    def spans(self) -> list[Span]:
        self._read_all()
        return self._timer.spans()

    def _event(self) -> Event:
        event: Event = torch.Event(self._device, enable_timing=True)
        return event

    def _read_all(self) -> None:
        if self._laps:
            self._laps[-1].event.synchronize()
        while self._laps:
            self._read()

    def _read(self) -> None:
        """Reads the first lap, which has passed."""
        event, stage, kind, what, step = self._laps.popleft()
        # Each from the one before: a float of milliseconds is too coarse for a whole run.
        self._now += round(self._before.elapsed_time(event) * 1e6)
        self._unused.append(self._before)
        self._before = event
        self._timer.steps_to(step)
        self._timer.book(self._now, stage, kind, what)

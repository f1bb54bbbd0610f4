"""A timer for devices that run asynchronously, such as CUDA devices.

A lap records an event on the current stream of the device. The timer reads the time of an event
after the event has completed, or on request, so the host does not wait in a step. Busy time is
therefore the time of the device, and waiting for input is the time that the stream waits for
the link.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter_ns
from typing import Any, NamedTuple, Protocol

import torch

from dglpipe.monitoring.timers import Kind, Span, Spent, Timer

PENDING = 256
"""Number of pending laps above which the timer reads completed events."""


class Event(Protocol):
    """The part of `torch.Event` that the timer uses."""

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
    """Measures laps with device events and books them on another timer.

    Args:
        device: the device whose current stream is measured.
        timer: stores the times; only this object may add laps to `timer`.
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
        """Time by stage and kind up to the last lap; waits until the device completes the lap."""
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
        """Books the first pending lap, whose event has completed."""
        event, stage, kind, what, step = self._laps.popleft()
        # Times are summed lap by lap: milliseconds in a float are too coarse for a whole run.
        self._now += round(self._before.elapsed_time(event) * 1e6)
        self._unused.append(self._before)
        self._before = event
        self._timer.steps_to(step)
        self._timer.book(self._now, stage, kind, what)

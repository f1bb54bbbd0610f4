"""Times of a device, measured by events; the host does not wait for them."""

from __future__ import annotations

import pytest
import torch

from dglpipe.monitoring import cuda_timers
from dglpipe.monitoring.cuda_timers import PENDING, CudaTimer
from dglpipe.monitoring.timers import Kind, Timer
from dglpipe.monitoring.trace import TracingTimer

CPU = torch.device("cpu")


class Stream:
    """A device whose work takes a given time, and whose progress the test sets."""

    def __init__(self) -> None:
        self.issued = 0.0
        self.passed = 0.0
        self.waits = 0
        self.events = 0

    def event(self, device, enable_timing):
        assert enable_timing and device == CPU
        self.events += 1
        return StreamEvent(self)


class StreamEvent:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.at = -1.0

    def record(self) -> None:
        self.at = self._stream.issued

    def query(self) -> bool:
        return self._stream.passed >= self.at

    def synchronize(self) -> None:
        self._stream.waits += 1
        self._stream.passed = max(self._stream.passed, self.at)

    def elapsed_time(self, end_event) -> float:
        assert self.query() and end_event.query(), "the time of an event that is still to come"
        return end_event.at - self.at


@pytest.fixture
def stream(monkeypatch):
    stream = Stream()
    monkeypatch.setattr(cuda_timers.torch, "Event", stream.event)
    return stream


def step(timer, stream, number):
    timer.steps_to(number)
    stream.issued += 2.0
    timer.lap(0, Kind.WAIT_INPUT)
    stream.issued += 5.0
    timer.lap(0, Kind.BUSY, "forward")


def test_a_lap_measures_device_time_without_waiting(stream):
    timer = CudaTimer(CPU, Timer())
    begun = stream.waits
    for number in range(10):
        step(timer, stream, number)
    assert (stream.waits, stream.passed) == (begun, 0.0)
    spent = timer.snapshot()
    assert stream.waits == begun + 1
    assert spent == {(0, Kind.WAIT_INPUT): 20_000_000, (0, Kind.BUSY): 50_000_000}


def test_events_that_have_passed_are_read_and_used_again(stream):
    timer = CudaTimer(CPU, Timer())
    begun = stream.waits
    for number in range(PENDING):
        step(timer, stream, number)
        stream.passed = stream.issued - 30.0  # some steps behind the host
    assert stream.waits == begun
    assert stream.events < PENDING + 10
    assert timer.snapshot()[0, Kind.BUSY] == PENDING * 5_000_000


def test_laps_of_a_slow_device_are_not_lost(stream):
    timer = CudaTimer(CPU, Timer())
    for number in range(PENDING):
        step(timer, stream, number)
    assert stream.events > 2 * PENDING
    assert timer.snapshot()[0, Kind.WAIT_INPUT] == PENDING * 2_000_000


def test_a_timeline_has_the_step_of_every_lap(stream):
    timer = CudaTimer(CPU, TracingTimer())
    assert timer.is_tracing
    step(timer, stream, 7)
    step(timer, stream, 8)
    spans = timer.spans()
    assert [(one.what, one.duration, one.step) for one in spans] == [
        ("receive", 2_000_000, 7),
        ("forward", 5_000_000, 7),
        ("receive", 2_000_000, 8),
        ("forward", 5_000_000, 8),
    ]
    assert spans[1].start + spans[1].duration == spans[2].start


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_device_a_product_takes_its_time():
    timer = CudaTimer(torch.device("cuda", 0), Timer())
    matrix = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    timer.lap(0, Kind.OTHER)
    for _ in range(50):
        matrix @ matrix
    timer.lap(0, Kind.BUSY)
    spent = timer.snapshot()
    assert spent[0, Kind.BUSY] > 5e6

"""Links of a given bandwidth and latency: when messages leave and arrive."""

from __future__ import annotations

import time

import pytest
import torch

from dglpipe.pipeline.emulated_transport import EmulatedLine, EmulatedTransport


def test_messages_leave_one_after_the_other_and_arrive_later():
    arrived = []

    def issue():
        arrived.append(time.perf_counter())

    line = EmulatedLine(0.05, 1e6)
    start = time.perf_counter()
    for work in [line.send(50_000, issue) for _ in range(2)]:
        work.wait()
    assert time.perf_counter() - start >= 0.1
    while len(arrived) < 2 and time.perf_counter() - start < 10:
        time.sleep(0.01)
    assert arrived[0] - start >= 0.1
    assert arrived[1] - start >= 0.15


class Broken:
    def isend(self, tensor):
        raise RuntimeError("the other end is gone")


def test_a_message_is_in_flight_until_arrival_and_a_loss_is_raised():
    link = EmulatedTransport(Broken(), 0.05, 1e6, until_arrival=True)
    start = time.perf_counter()
    work = link.isend(torch.zeros(50_000, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="the other end is gone"):
        work.wait()
    assert time.perf_counter() - start >= 0.1

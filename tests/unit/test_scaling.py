"""What benchmarks/scaling emulates, and what it makes of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "scaling"))

import scaling
from emulated import WAYS, Case

from dglpipe.slow_link import SlowLine, SlowTransport


@pytest.mark.parametrize("way", list(WAYS))
def test_a_way_takes_no_less_than_its_work(way):
    """2 stages, 6 micro-batches: what is slept twice or never would show."""
    value = scaling.measure(Case(way, 2, 300.0, 16, 4, microbatches=6))
    assert 0.6 < value < 1.02
    if way == "gpipe":
        assert value < 6 / 7 + 0.02, "a pipeline that waits for its last micro-batch has a bubble"


def test_a_slow_link_slows_a_pipeline_and_not_the_chain():
    slow = {"latency_ms": 30.0, "microbatches": 4}
    chain = scaling.measure(Case("dgl", 2, 60.0, 16, 8, **slow))
    pipeline = scaling.measure(Case("1f1b", 2, 60.0, 16, 8, **slow))
    assert chain > 0.75
    assert pipeline < chain - 0.2


def test_messages_leave_one_after_the_other_and_arrive_later():
    arrived = []

    def issue():
        arrived.append(time.perf_counter())

    line = SlowLine(0.05, 1e6)
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


def test_a_message_is_under_way_until_it_arrives_and_a_loss_is_told():
    link = SlowTransport(Broken(), 0.05, 1e6, until_arrival=True)
    start = time.perf_counter()
    work = link.isend(torch.zeros(50_000, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="the other end is gone"):
        work.wait()
    assert time.perf_counter() - start >= 0.1


def test_it_says_where_one_way_overtakes_another():
    common = {"stages": 4, "latency_ms": 0.0, "ms": 50.0}
    rows = [
        {"way": way, "gbit": gbit, "efficiency": [value], **common}
        for way, values in {"dgl": (0.5, 0.9, 0.95), "1f1b": (0.6, 0.7, 0.8)}.items()
        for gbit, value in zip((1.0, 10.0, 0.0), values, strict=True)
    ]
    assert scaling.crossings(rows, "gbit") == [
        "1f1b is ahead up to gbit 1, dgl from 10 on (stages 4, ms 50)"
    ]
    assert scaling.crossings(rows, "latency_ms") == []


def test_one_process_leaves_this_one_as_it_was():
    threads = torch.get_num_threads()
    scaling.measure(Case("dgl", 1, 2.0, 16, 4))
    assert torch.get_num_threads() == threads

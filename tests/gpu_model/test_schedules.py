"""The link over modelled CUDA streams: no schedule gives a wrong value or a deadlock.

The operations of two processes of a chain that the scheduler may interleave, D = 2:

    compute j      f1 w1 b1 f2 (s1) w2 b2 ...        f: forward   w: write slot   b: backward
    NCCL j -> j+1        1.....       2.....         (s1): wait for send 1
    compute j+1           (r1) f1 b1 (r2) f2 b2      (r1): wait for receive 1
"""

from __future__ import annotations

import random

import pytest
import torch
from chain_model import Outcome, run_schedule
from mutants import MUTANTS
from streams import GARBAGE, Host, ModelTransport, Operation, PairGroup, Stream, run

from harness.configs import in_test_all

SCHEDULES = 30
"""Random schedules of each chain."""

CHAINS = [
    *((2, 1), (3, 1), (3, 2), (4, 3)),
    *(in_test_all(*one) for one in ((2, 2), (2, 3), (3, 3), (4, 1), (4, 2))),
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("processes", "depth"), CHAINS)
def test_every_schedule_is_right(processes, depth):
    outcomes = [run_schedule(seed, processes, depth) for seed in range(SCHEDULES)]
    for seed, outcome in enumerate(outcomes):
        assert not outcome.problems(depth), f"schedule {seed}: {outcome}"
    # The bound is reached, so the sender does not wait longer than necessary.
    assert max(outcome.in_flight for outcome in outcomes) == depth


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.parametrize(("processes", "depth"), [(2, 1), (3, 2), (2, 3)])
def test_every_fault_is_found(name, processes, depth):
    parts, expected = MUTANTS[name]
    found = set()
    for seed in range(SCHEDULES):
        found |= run_schedule(seed, processes, depth, parts).problems(depth)
        if expected <= found:
            return
    pytest.fail(f"{name}: {SCHEDULES} schedules show {found}, not {expected}")


def test_a_schedule_can_be_repeated():
    parts, _ = MUTANTS["no wait on receive"]
    assert run_schedule(3, 3, 2, parts) == run_schedule(3, 3, 2, parts)


def test_early_post_leaves_the_forward_alone():
    """That fault shows in the backward only: a check of the forward would miss it."""
    parts, _ = MUTANTS["slot posted before backward"]
    wrong = set().union(*(run_schedule(seed, 2, 1, parts).wrong for seed in range(SCHEDULES)))
    assert wrong == {"backward"}


def test_problems_are_named():
    outcome = Outcome({"forward"}, ["host 0 waits"], in_flight=3)
    assert outcome.problems(2) == {"forward", "deadlock", "bound"}
    assert not Outcome(set(), [], in_flight=2).problems(2)


class TestModel:
    """The model itself behaves as CUDA and NCCL are documented to."""

    def test_stream_runs_in_order(self):
        stream, ran = Stream("s"), []
        for number in range(5):
            stream.issue(lambda number=number: ran.append(number))
        assert run([stream], random.Random(0)) == []
        assert ran == list(range(5))

    def test_operation_waits_for_an_event_of_another_stream(self):
        first, second, ran = Stream("a"), Stream("b"), []
        event = first.issue(lambda: ran.append("a"))
        second.issue(lambda: ran.append("b"), [event])
        assert not second.ready()
        assert run([second, first], random.Random(0)) == []
        assert ran == ["a", "b"]

    def test_wait_orders_the_stream_and_not_the_host(self):
        group, compute = PairGroup("g"), Stream("c")
        work = ModelTransport(compute, group).irecv(torch.zeros(4, dtype=torch.uint8))
        work.wait()
        compute.issue(lambda: pytest.fail("ran in front of the transfer"))
        undone = run([compute, group], random.Random(0))
        assert undone == ["c: 2 operations", "g: 0 sends, 1 receives"]

    def test_receive_buffer_holds_garbage_until_the_end(self):
        group, compute = PairGroup("g"), Stream("c")
        transport = ModelTransport(compute, group)
        source, target = torch.arange(4, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)
        transport.isend(source)
        transport.irecv(target)
        group.advance()
        assert target.tolist() == [GARBAGE] * 4
        group.advance()
        assert target.tolist() == [0, 1, 2, 3]

    def test_a_transfer_starts_after_the_work_of_the_stream(self):
        group, compute = PairGroup("g"), Stream("c")
        transport = ModelTransport(compute, group)
        buffer, target = torch.zeros(2, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
        transport.fill(buffer, 7)
        transport.isend(buffer)
        transport.irecv(target)
        assert not group.ready()
        assert run([group, compute], random.Random(0)) == []
        assert target.tolist() == [7, 7]

    def test_host_waits_for_what_it_yields(self):
        event = Operation(None)
        host = Host("host 0", iter([None, event, None]))
        assert run([host], random.Random(0)) == ["host 0 waits"]
        event.done = True
        assert run([host], random.Random(0)) == []

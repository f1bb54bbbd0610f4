"""Links that are made anew when the process of a neighbour has been replaced."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from dglpipe.errors import PeerLostError, RejoinError
from dglpipe.pipeline.p2p import PairTransport
from dglpipe.pipeline.stage_links import StageLinks, withdraw_process

LIMIT_S = 20.0


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    return HashStore()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as threads:
        yield threads


def meet(pool, lower, upper):
    """Both ends of the link between two stages."""
    ends = pool.submit(lower.meet, 1), pool.submit(upper.meet, 0)
    return [end.result(LIMIT_S) for end in ends]


def carries(pool, groups):
    """Whether a message passes from the first group to the second."""
    below, above = (PairTransport(group, 1 - at, "it") for at, group in enumerate(groups))
    received = torch.zeros(3)
    sent = pool.submit(lambda: below.isend(torch.arange(3.0)).wait())
    above.irecv(received).wait()
    sent.result(LIMIT_S)
    return received.tolist() == [0, 1, 2]


def test_two_stages_meet(store, pool):
    lower, upper = (StageLinks(stage, 0, store, LIMIT_S) for stage in (0, 1))
    assert carries(pool, meet(pool, lower, upper))


@pytest.mark.parametrize("replaced", [0, 1])
def test_a_stage_meets_the_next_process_of_its_neighbour(replaced, store, pool):
    links = [StageLinks(stage, 0, store, LIMIT_S) for stage in (0, 1)]
    meet(pool, *links)
    for generation in (1, 2):
        waits = pool.submit(links[1 - replaced].meet, replaced)
        time.sleep(0.05)
        assert not waits.done(), "the old process has been met already"
        links[replaced] = StageLinks(replaced, generation, store, LIMIT_S)
        new = links[replaced].meet(1 - replaced)
        groups = [waits.result(LIMIT_S), new]
        assert carries(pool, groups if replaced else groups[::-1])


def test_a_process_that_has_ended_at_the_meeting_is_not_waited_for(store, pool, monkeypatch):
    """It has left its keys, but no connection."""
    monkeypatch.setattr("dglpipe.pipeline.stage_links.CONNECT_S", 0.5)
    lower = StageLinks(0, 0, store, LIMIT_S)
    StageLinks(1, 0, store, LIMIT_S)
    store.set("link/0-1/0-0/1", "")
    waits = pool.submit(lower.meet, 1)
    store.wait(["link/0-1/0-0/0"])
    new = StageLinks(1, 1, store, LIMIT_S).meet(0)
    assert carries(pool, [waits.result(LIMIT_S), new])


def test_a_process_that_was_withdrawn_is_not_met(store, pool, monkeypatch):
    monkeypatch.setattr("dglpipe.pipeline.stage_links.CONNECT_S", 0.0)  # it would fail
    lower = StageLinks(0, 0, store, LIMIT_S)
    StageLinks(1, 0, store, LIMIT_S)
    store.set("link/0-1/0-0/1", "")
    withdraw_process(store, 1)
    waits = pool.submit(lower.meet, 1)
    time.sleep(0.1)
    assert not store.check(["link/0-1/0-0/0"])
    monkeypatch.setattr("dglpipe.pipeline.stage_links.CONNECT_S", LIMIT_S)
    new = StageLinks(1, 1, store, LIMIT_S).meet(0)
    assert carries(pool, [waits.result(LIMIT_S), new])


def test_a_neighbour_that_does_not_come_back_is_lost(store):
    links = StageLinks(0, 0, store, 0.2)
    with pytest.raises(PeerLostError, match=r"stage 1 was not started within 0\.2 s"):
        links.meet(1)


def test_a_neighbour_that_runs_but_does_not_answer_is_lost_at_once(store):
    links = StageLinks(0, 0, store, 0.2)
    error = PeerLostError("timed out")
    with pytest.raises(PeerLostError) as caught:
        links.meet_again(1, error, time.monotonic() - 0.3)
    assert caught.value is error


def test_a_neighbour_that_has_finished_does_not_come_back(store):
    upper = StageLinks(1, 0, store, LIMIT_S)
    upper.finish()
    with pytest.raises(RejoinError, match="stage 1 has finished, and stage 0 has not"):
        StageLinks(0, 1, store, LIMIT_S).meet(1)


def test_a_new_process_has_not_finished(store, pool):
    StageLinks(1, 0, store, LIMIT_S).finish()
    links = StageLinks(0, 0, store, LIMIT_S), StageLinks(1, 1, store, LIMIT_S)
    assert carries(pool, meet(pool, *links))

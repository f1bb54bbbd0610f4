"""Workers that a launcher starts again share its store with workers that have ended."""

from __future__ import annotations

import threading

import pytest
from torch._C._distributed_c10d import HashStore

from dglpipe.errors import PeerLostError
from dglpipe.pipeline.stores import join_attempt


def join_all(store, size):
    """The stores of all ranks, by rank."""
    found = {}

    def join(rank):
        found[rank] = join_attempt(store, rank, size, 20)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == size
    return [found[rank] for rank in range(size)]


def test_all_ranks_use_the_same_part():
    first, *others = join_all(HashStore(), 3)
    first.set("key", "value")
    assert [other.get("key") for other in others] == [b"value"] * 2


def test_keys_of_an_earlier_attempt_are_not_seen():
    store = HashStore()
    join_all(store, 2)[0].set("address", "of a process that has ended")
    again = join_all(store, 2)
    assert not any(one.check(["address"]) for one in again)


def test_a_question_of_a_process_that_has_ended_does_not_count():
    store = HashStore()
    store.set("hello/1", "nobody waits for the answer")
    first, second = join_all(store, 2)
    second.set("key", "value")
    assert first.get("key") == b"value"


class AskedMeanwhile(HashStore):
    """Rank 1 asks anew just before rank 0 answers its process that has ended."""

    def set(self, key, value):
        if key == "answer/old":
            super().set("hello/1", "new")
        if key == "answer/new":
            super().set(f"{value}/here/1", "")
        super().set(key, value)


def test_a_question_that_replaces_an_old_one_is_answered():
    store = AskedMeanwhile()
    store.set("hello/1", "old")
    join_attempt(store, 0, 2, 5)
    assert store.get("answer/new") == store.get("answer/old")


def test_a_rank_that_does_not_arrive_is_reported():
    with pytest.raises(PeerLostError, match=r"not all processes have started within 0\.1 s"):
        join_attempt(HashStore(), 0, 2, 0.1)


def test_a_process_alone_asks_nobody():
    assert join_attempt(HashStore(), 0, 1, 0.1).num_keys() == 0

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dglpipe.config import READ_RULES
from dglpipe.methods.dgl_async.replay import InOrder, Replay

CAPACITIES = st.integers(1, 6)
ACTIONS = st.lists(st.booleans(), max_size=60)
"""True is a write, False a read."""


def play(replay, actions):
    """Writes 1, 2, 3, ...; returns the batches read, in order."""
    written, came = 0, []
    for is_write in actions:
        if is_write:
            written += 1
            replay.write(written)
        else:
            read = replay.read()
            if read is not None:
                came.append(read)
    return came


class Plain:
    """The read rules as in the paper's code, over all entries ever written."""

    def __init__(self, capacity, rule):
        self.capacity, self.rule, self.uses = capacity, rule, []

    def write(self):
        self.uses.append(1)

    def read(self):
        first = max(0, len(self.uses) - self.capacity)
        held = range(first, len(self.uses))
        if not held:
            return None
        least = min(self.uses[at] for at in held)
        at = max(at for at in held if self.uses[at] == least)
        is_full = len(held) == self.capacity
        if self.rule == "authors" and is_full and self.uses[first] == least:
            at = first
        self.uses[at] += 1
        return at + 1


@given(CAPACITIES, st.sampled_from(READ_RULES), ACTIONS)
def test_read_follows_the_rule(capacity, rule, actions):
    plain, wanted = Plain(capacity, rule), []
    for is_write in actions:
        if is_write:
            plain.write()
        else:
            wanted.append(plain.read())
    came = play(Replay(capacity, rule), actions)
    assert [read.value for read in came] == [one for one in wanted if one is not None]


@given(CAPACITIES, st.sampled_from(READ_RULES), ACTIONS)
def test_holds_the_last_batches_and_gives_back_the_others_in_order(capacity, rule, actions):
    replay, gone = Replay(capacity, rule), []
    for number, is_write in enumerate(actions):
        if is_write:
            gone.append(replay.write(number))
        else:
            replay.read()
    writes = [number for number, is_write in enumerate(actions) if is_write]
    assert replay.values() == writes[-capacity:]
    assert [one for one in gone if one is not None] == writes[:-capacity]
    assert gone[:capacity] == [None] * min(capacity, len(writes))


@given(CAPACITIES, st.sampled_from(READ_RULES), st.integers(1, 3), ACTIONS)
def test_no_batch_is_read_more_often_than_allowed(capacity, rule, most, actions):
    replay = Replay(capacity, rule, max_reuse=most)
    counts = Counter(read.value for read in play(replay, actions))
    assert all(count <= most for count in counts.values())
    while replay.read() is not None:
        pass
    assert all(entry.reads == most for entry in replay._entries)


@given(CAPACITIES, st.sampled_from(READ_RULES), st.integers(0, 4), ACTIONS)
def test_no_read_is_older_than_allowed(capacity, rule, oldest, actions):
    replay = Replay(capacity, rule, max_age=oldest)
    assert all(read.age <= oldest for read in play(replay, actions))


@given(CAPACITIES, st.sampled_from(READ_RULES), ACTIONS)
def test_every_batch_is_accounted_for(capacity, rule, actions):
    replay = Replay(capacity, rule)
    came = play(replay, actions)
    by_entry = replay.reads_by_entry()
    assert sum(by_entry.values()) == replay.usage.written == sum(actions)
    assert sum(reads * count for reads, count in by_entry.items()) == len(came)
    assert replay.usage.reads == len(came) == sum(replay.usage.ages.values())
    assert replay.usage.repeats == len(came) - len({read.value for read in came})
    assert replay.usage.repeats == sum(read.is_repeat for read in came)


def test_age_counts_outputs_that_were_dropped_on_the_way():
    replay = Replay(3)
    replay.write("a", 1)
    replay.write("b", 5)
    assert replay.read() == ("b", 0, False)
    assert replay.read() == ("a", 4, False)
    with pytest.raises(ValueError, match="batch 5 was written after batch 5"):
        replay.write("c", 5)


@given(ACTIONS)
def test_in_order_every_batch_comes_once(actions):
    queue, written, came = InOrder(), 0, []
    for is_write in actions:
        if is_write:
            written += 1
            assert queue.write(written, written) is None
        else:
            read = queue.read()
            assert (read is None) == (written == len(came))
            came += [] if read is None else [read.value]
    assert came == list(range(1, len(came) + 1))
    assert len(queue) == queue.left()[0] == written - len(came)
    assert queue.reads_by_entry() == Counter({0: written - len(came), 1: len(came)})
    assert queue.usage.repeats == 0

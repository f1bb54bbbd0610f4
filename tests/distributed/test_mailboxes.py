"""Asynchronous links: stages do not wait for each other, and every lost message is counted."""

from __future__ import annotations

import os
import time

import pytest
import torch

from dglpipe.config import AsyncConfig
from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.errors import LinkError, PeerLostError
from dglpipe.methods.dgl_async.progress_engine import ThreadProgressEngine
from dglpipe.methods.dgl_async.receiver import AsyncReceiver
from dglpipe.methods.dgl_async.replay import InOrder, Replay
from dglpipe.methods.dgl_async.sender import AsyncSender
from dglpipe.methods.dgl_async.storage import StorageFormat
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.message import ACTIVATIONS, LABELS, MessageFormat, contiguous_field
from dglpipe.pipeline.transport import Header
from harness.configs import in_test_all, layout
from harness.worlds import WorldError, run_world

CPU = Device(torch.device("cpu"), "gloo")
LAST_TEST = 2


def layouts(numbers=8):
    fields = (
        contiguous_field(LABELS, torch.int64, ()),
        contiguous_field(ACTIVATIONS, torch.float32, (numbers,)),
    )
    return {phase: MessageFormat(4, fields) for phase in Phase}


def content(number, rows=4, numbers=8):
    labels = torch.arange(rows) + 1000 * number
    return {LABELS: labels, ACTIVATIONS: labels[:, None].float().expand(rows, numbers)}


def test_item(number, rows=4):
    return BatchItem(Phase.TEST, number, 1, 9, 0, rows, rows, number == LAST_TEST, 0, 1, 9)


test_item.__test__ = False


def outbox(group, slots, drops, numbers=8):
    device = torch.device("cpu")
    return AsyncSender(
        group.following, layouts(numbers), device, slots, drops, ThreadProgressEngine("outbox")
    )


def inbox(group, replay, slots, numbers=8, **settings):
    keeping = StorageFormat(AsyncConfig(**settings), CPU, torch.float32)
    device = torch.device("cpu")
    more = (replay, slots, keeping, LAST_TEST, "link 0 -> 1", ThreadProgressEngine("inbox"))
    return AsyncReceiver(group.previous, layouts(numbers), device, *more)


def end(box, rows=4):
    """The last evaluation, which ends the link."""
    for number in range(1, LAST_TEST + 1):
        box.send(test_item(number, rows), content(number, rows))
    box.close()


def take_tests(box):
    for number in range(1, LAST_TEST + 1):
        parts = box.test(test_item(number))
        assert parts[LABELS].tolist() == content(number)[LABELS].tolist()
    box.close()


def busy_reader(group, count, capacity, **settings):
    """Rank 1 is busy while `count` messages arrive; returns the messages it reads afterwards."""
    if group.topology.rank == 0:
        box = outbox(group, 2, True)
        for number in range(1, count + 1):
            box.send(Header(Phase.TRAIN, number, 4), content(number))
            time.sleep(0.002)
        end(box)
        return box.dropped
    replay = Replay(capacity)
    box = inbox(group, replay, 2 if settings else capacity + 2, **settings)
    while not box.has_test:
        time.sleep(0.01)
    found = []
    while (batch := box.read(learns=False)) is not None:
        number = int(batch.labels[0]) // 1000
        sent = content(number)[ACTIVATIONS]
        assert torch.equal(batch.features, sent.bfloat16().float() if settings else sent)
        found.append(number)
    take_tests(box)
    return found, replay.usage.written


@pytest.mark.parametrize("settings", [{}, {"storage_precision": "bf16", "buffer": 3}])
def test_a_busy_reader_does_not_block_the_sender(settings):
    dropped, (found, written) = run_world(layout(2), busy_reader, 50, 3)
    assert written == 50 - dropped
    assert len(found) == min(3, written) > 1
    assert found[0] == 50, "the newest is read first, and is never dropped"
    assert found == sorted(found, reverse=True)


class Stuck:
    """A transport whose sends end only when the test opens it."""

    def __init__(self):
        self.sent, self.under_way, self.open = [], 0, False

    def isend(self, tensor):
        self.sent.append(tensor.clone())
        self.under_way += 1
        return self

    def wait(self):
        while not self.open:
            time.sleep(0.001)
        self.under_way -= 1

    def irecv(self, tensor):
        raise AssertionError

    def copy(self, target, source):
        target.copy_(source)

    def fill(self, target, value):
        target.fill_(value)


def numbers_of(transport):
    return [int(tensor[8:16].view(torch.int64)) for tensor in transport.sent]


def test_the_oldest_unsent_training_message_is_replaced():
    transport = Stuck()
    box = AsyncSender(
        transport, layouts(), torch.device("cpu"), 3, True, ThreadProgressEngine("outbox")
    )
    box.send(Header(Phase.TRAIN, 1, 4), content(1))
    while not transport.sent:
        time.sleep(0.001)
    for number in (2, 3, 4):
        box.send(Header(Phase.TRAIN, number, 4), content(number))
    assert box.dropped == 1
    box.send(Header(Phase.TRAIN, 5, 4), content(5))
    assert box.dropped == 2
    transport.open = True
    box.send(test_item(1), content(1))
    box.send(test_item(2), content(2))
    box.close()
    assert numbers_of(transport) == [1, 4, 5, 1, 2]
    assert box.dropped == 2


def test_with_one_slot_a_sender_waits_only_for_the_transfer():
    transport = Stuck()
    transport.open = True
    box = AsyncSender(
        transport, layouts(), torch.device("cpu"), 1, True, ThreadProgressEngine("outbox")
    )
    for number in range(1, 20):
        box.send(Header(Phase.TRAIN, number, 4), content(number))
    box.close()
    assert len(transport.sent) == 19 - box.dropped


def blocking(group, depth, count):
    """Rank 1 reads only when the sender is blocked; returns how many messages were sent by then."""
    if group.topology.rank == 0:
        box = outbox(group, 1, False)
        for number in range(1, count + 1):
            box.send(Header(Phase.TRAIN, number, 4), content(number))
            group.store.add("sent", 1)
        end(box)
        return None
    replay, seen, sent = InOrder(), [], []
    box = inbox(group, replay, depth)
    for _ in range(count):
        before = -1
        while (now := group.store.add("sent", 0)) != before:
            before = now
            time.sleep(0.2)
        sent.append(now - len(seen))
        while (batch := box.read()) is None:
            box.wait()
        seen.append(int(batch.labels[0]) // 1000)
    take_tests(box)
    return seen, sent


@pytest.mark.parametrize("depth", [in_test_all(1), 3])
def test_a_link_that_blocks_is_bounded_and_keeps_the_order(depth):
    _, (seen, sent) = run_world(layout(2), blocking, depth, 6)
    assert seen == [1, 2, 3, 4, 5, 6]
    # `sent` counts the messages that the sender has accepted, including messages in flight.
    assert max(sent) <= max(depth, 1)


def lost_reader(group):
    if group.topology.rank == 1:
        return "gone"
    box = outbox(group, 2, True, numbers=2**20)
    for number in range(1, 1000):
        box.send(Header(Phase.TRAIN, number, 4), content(number, numbers=2**20))
        time.sleep(0.01)
    return "never noticed"


def lost_writer(group):
    if group.topology.rank == 0:
        return "gone"
    inbox(group, Replay(2), 4).wait()
    return "never noticed"


@pytest.mark.parametrize("function", [lost_reader, lost_writer])
def test_the_loss_of_a_neighbour_is_raised_when_the_process_polls(function):
    with pytest.raises(WorldError) as caught:
        run_world(layout(2), _leave, function)
    kinds = {failure.kind for failure in caught.value.failures}
    assert PeerLostError.__name__ in kinds


def _leave(group, function):
    result = function(group)
    if result == "gone":
        os._exit(0)
    return result


def wrong_header(group):
    if group.topology.rank == 0:
        box = outbox(group, 2, False)
        box.send(Header(Phase.TRAIN, 1, 4), content(1))
        slot = box._claim_slot(Phase.TRAIN)
        slot.words.copy_(torch.tensor([0, 1, 99]))
        with box._engine:
            box._unsent.append((slot, Phase.TRAIN))
            box._engine.changed()
        time.sleep(1)
        return
    box = inbox(group, Replay(2), 4)
    while True:
        box.read()
        box.wait()


@pytest.mark.slow
def test_a_corrupt_header_is_refused():
    with pytest.raises(WorldError) as caught:
        run_world(layout(2), wrong_header)
    assert caught.value.failures[0].kind == LinkError.__name__
    assert "corrupt message header: phase 0" in caught.value.failures[0].message

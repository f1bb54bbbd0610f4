"""A link over a transport in memory: order, depth, and when a slot may be used again.

D = 2, time running down:

    sender                               receiver
                                         receive 1 posted at the start
    send 1                  ------>      take 1, post receive 2
    wait for send 1
    send 2                  ------>      take 2, post receive 3 into the slot of 1
"""

from __future__ import annotations

import itertools

import pytest
import torch

from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.errors import LinkError
from dglpipe.pipeline.link import HeaderLog, Receiver, Sender
from dglpipe.pipeline.message import ACTIVATIONS, LABELS, MessageFormat, contiguous_field
from harness.schedules import batch_schedule
from harness.transports import MemoryTransport

CPU = torch.device("cpu")
SCHEDULE = batch_schedule()
ITEMS = list(SCHEDULE.items())


def make_formats():
    fields = (
        contiguous_field(LABELS, torch.int64, ()),
        contiguous_field(ACTIVATIONS, torch.float32, (2, 3)),
    )
    rows = {phase: SCHEDULE.largest_rows(phase) for phase in Phase}
    return {phase: MessageFormat(rows[phase], fields) for phase in Phase}


def make_sender(wire):
    return Sender(wire, make_formats(), CPU)


def make_receiver(wire, depth, items=ITEMS):
    return Receiver(wire, make_formats(), iter(items), depth, CPU, "link 0 -> 1")


def parts_of(item):
    """Labels and activations that name the message."""
    value = 100 * int(item.phase) + item.number
    labels = torch.full((item.rows,), value)
    return {LABELS: labels, ACTIVATIONS: torch.full((item.rows, 2, 3), float(value))}


def assert_is(item, views, expected):
    assert item == expected
    for name, tensor in parts_of(expected).items():
        assert torch.equal(views[name], tensor), f"{name} of {expected}"


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_every_message_arrives_whole_and_in_order(depth):
    """Uneven batches and test batches too, at every depth."""
    wire = MemoryTransport()
    sender, receiver = make_sender(wire), make_receiver(wire, depth)
    for expected in ITEMS:
        sender.send(expected, parts_of(expected))
        assert_is(*receiver.take(), expected)
    receiver.check()
    assert len(wire.sent) == len(wire.posted) == len(ITEMS)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_the_depth_determines_the_number_of_posted_receives(depth):
    wire = MemoryTransport()
    receiver = make_receiver(wire, depth)
    assert len(wire.posted) == depth - 1
    sender = make_sender(wire)
    for taken, item in enumerate(ITEMS, 1):
        sender.send(item, parts_of(item))
        receiver.take()
        ahead = max(1, depth) - 1
        assert len(wire.posted) == min(len(ITEMS), taken + ahead)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_link_has_d_receive_slots_and_one_send_slot(depth):
    wire = MemoryTransport()
    sender, receiver = make_sender(wire), make_receiver(wire, depth)
    for item in ITEMS:
        sender.send(item, parts_of(item))
        receiver.take()
    assert len({tensor.data_ptr() for tensor in wire.sent}) == 1
    assert len({tensor.data_ptr() for tensor in wire.posted}) == depth


@pytest.mark.parametrize("depth", [2, 3])
def test_a_received_message_is_valid_until_the_next_take(depth):
    wire = MemoryTransport()
    sender, receiver = make_sender(wire), make_receiver(wire, depth)
    for expected, following in itertools.pairwise(ITEMS):
        if expected is ITEMS[0]:
            sender.send(expected, parts_of(expected))
        item, views = receiver.take()
        sender.send(following, parts_of(following))
        sender.wait()
        assert_is(item, views, expected)


def test_the_sender_writes_its_slot_after_the_previous_message_has_left():
    """The transport transfers a message only when the receiver waits for it."""
    wire = MemoryTransport()
    receiver = make_receiver(wire, 3)
    sender = make_sender(wire)
    sender.send(ITEMS[0], parts_of(ITEMS[0]))
    assert wire.left == 0
    sender.send(ITEMS[1], parts_of(ITEMS[1]))
    assert wire.left == 1, "the first message left before the second one was written"
    for expected in ITEMS[:2]:
        assert_is(*receiver.take(), expected)


def test_waiting_twice_waits_once():
    wire = MemoryTransport()
    make_receiver(wire, 2)
    sender = make_sender(wire)
    sender.wait()
    sender.send(ITEMS[0], parts_of(ITEMS[0]))
    sender.wait()
    wire.deliver = lambda _: pytest.fail("the transfer is over")
    sender.wait()


def test_only_words_of_the_header_that_changed_are_written():
    wire = MemoryTransport()
    make_receiver(wire, 3)
    sender = make_sender(wire)
    for item, words in zip(ITEMS, (3, 1, 2), strict=False):
        wire.log.clear()
        sender.send(item, parts_of(item))
        assert wire.log.count("fill") == words, item


def test_an_uneven_batch_is_a_prefix_of_the_slot():
    wire = MemoryTransport()
    make_receiver(wire, 5)
    sender = make_sender(wire)
    for item in ITEMS[:3]:
        sender.send(item, parts_of(item))
    first, _, last = wire.sent
    assert last.data_ptr() == first.data_ptr()
    assert len(last) < len(first)


@pytest.mark.parametrize(
    ("changes", "came"),
    [
        ({"number": 9}, "train batch 9 of 4 rows"),
        ({"phase": Phase.TEST, "number": 2}, "test batch 2 of 4 rows"),
    ],
)
def test_an_unexpected_header_names_both_ends(changes, came):
    expected = ITEMS[1]
    other = expected._replace(**changes)
    log = HeaderLog("link 0 -> 1", CPU)
    log.add(MemoryTransport(), ITEMS[0], header_of(ITEMS[0]))
    log.add(MemoryTransport(), expected, header_of(other))
    with pytest.raises(LinkError, match=rf"link 0 -> 1: .*expected train batch 2 .*sent {came}"):
        log.compare()
    log.compare()


def header_of(item: BatchItem) -> torch.Tensor:
    return torch.tensor([int(item.phase), item.number, item.rows])


def test_headers_are_compared_before_the_log_is_full():
    log = HeaderLog("link 0 -> 1", CPU)
    wrong = ITEMS[0]._replace(number=7)
    log.add(MemoryTransport(), ITEMS[0], header_of(wrong))
    with pytest.raises(LinkError, match="batch 7"):
        for _ in range(HeaderLog.CAPACITY):
            log.add(MemoryTransport(), ITEMS[0], header_of(ITEMS[0]))


def test_a_receiver_compares_the_header_with_its_plan():
    wire = MemoryTransport()
    plan = [ITEMS[1], *ITEMS[1:]]
    sender, receiver = make_sender(wire), make_receiver(wire, 2, plan)
    sender.send(ITEMS[0], parts_of(ITEMS[0]))
    receiver.take()
    with pytest.raises(LinkError, match="expected train batch 2 of 4 rows"):
        receiver.check()

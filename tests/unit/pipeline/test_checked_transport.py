"""The checked transport finds every misuse of a buffer.

isend(b) ........ wait()     b may be read, not written
irecv(b) ........ wait()     b may be neither read nor written: it holds a poison
"""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch

from dglpipe.data.batch_schedule import Phase
from dglpipe.errors import LinkError
from dglpipe.pipeline.checked_transport import POISON, CheckedTransport
from dglpipe.pipeline.link import Receiver, Sender
from dglpipe.pipeline.message import ACTIVATIONS, LABELS, MessageFormat, contiguous_field
from harness.schedules import batch_schedule
from harness.transports import MemoryTransport


@pytest.fixture
def mailbox():
    return MemoryTransport()


@pytest.fixture
def link(mailbox):
    return CheckedTransport(mailbox)


def message(*values):
    return torch.tensor(values, dtype=torch.uint8)


def sent(link):
    """A buffer of 4 bytes that is being sent, and its work."""
    buffer = message(1, 2, 3, 4)
    return buffer, link.isend(buffer)


def posted(link, mailbox):
    """A buffer of 4 bytes for which a receive is posted, and its work."""
    mailbox.sent.append(message(9, 8, 7, 6))
    buffer = torch.zeros(4, dtype=torch.uint8)
    return buffer, link.irecv(buffer)


def test_right_use_passes(link, mailbox):
    buffer, work = sent(link)
    work.wait()
    link.fill(buffer, 5)
    target = torch.zeros(4, dtype=torch.uint8)
    receive = link.irecv(target)
    receive.wait()
    link.copy(buffer, target)
    link.isend(buffer).wait()
    assert [tensor.tolist() for tensor in mailbox.sent] == [[5] * 4, [5] * 4]


def test_copy_and_fill_reach_the_inner_transport(link, mailbox):
    target = torch.zeros(2)
    link.fill(target, 3)
    link.copy(target[:1], torch.ones(1))
    assert target.tolist() == [1, 3]
    assert mailbox.log == ["fill", "copy"]


def test_a_receive_holds_poison_until_it_is_waited_for(link, mailbox):
    buffer, work = posted(link, mailbox)
    assert buffer.tolist() == [POISON] * 4
    assert math.isnan(buffer.view(torch.float32).item())
    assert buffer.view(torch.int32).item() == -1
    work.wait()
    assert buffer.tolist() == [9, 8, 7, 6]


@pytest.mark.parametrize(
    ("misuse", "text"),
    [
        (lambda link, b: link.fill(b[1:2], 0), "written while it was being sent"),
        (lambda link, b: link.copy(b[3:], message(0)), "written while it was being sent"),
        (lambda link, b: link.isend(b[:2]), "sent again while it was being sent"),
        (lambda link, b: link.irecv(b), "posted for a receive while it was being sent"),
    ],
)
def test_misuse_of_what_is_being_sent(link, misuse, text):
    buffer, _ = sent(link)
    with pytest.raises(LinkError, match=text):
        misuse(link, buffer)


@pytest.mark.parametrize(
    ("misuse", "text"),
    [
        (lambda link, b: link.fill(b[1:2], 0), "written while a receive"),
        (lambda link, b: link.copy(b, message(0, 0, 0, 0)), "written while a receive"),
        (lambda link, b: link.copy(message(0), b[:1]), "read while a receive"),
        (lambda link, b: link.isend(b), "sent while a receive"),
        (lambda link, b: link.irecv(b[2:]), "posted again while a receive"),
    ],
)
def test_misuse_of_what_is_being_received(link, mailbox, misuse, text):
    buffer, _ = posted(link, mailbox)
    with pytest.raises(LinkError, match=text):
        misuse(link, buffer)


def test_a_write_past_the_link_after_a_send_shows_at_wait(link):
    buffer, work = sent(link)
    buffer.view(torch.int32).relu_().add_(1)
    with pytest.raises(LinkError, match="written while it was being sent"):
        work.wait()


def test_a_write_past_the_link_into_a_receive_shows_at_wait(link, mailbox):
    buffer, work = posted(link, mailbox)
    buffer[2] = 0
    with pytest.raises(LinkError, match="written while a receive into it was in progress"):
        work.wait()


def test_neighbours_in_memory_are_not_mixed_up(link):
    whole = torch.zeros(8, dtype=torch.uint8)
    link.isend(whole[:4])
    link.fill(whole[4:], 1)
    link.isend(whole[4:])


# ---------------------------------------------------------------- the link itself

PLAN = batch_schedule(train=6, batch_size=2)
FIELDS = (
    contiguous_field(LABELS, torch.int64, ()),
    contiguous_field(ACTIVATIONS, torch.float32, (1,)),
)
LAYOUTS = {phase: MessageFormat(2, FIELDS) for phase in Phase}
CPU = torch.device("cpu")


class ForgetsToWait(Sender):
    def wait(self):
        self._work = None


class PostsSlotInUse(Receiver):
    def take(self):
        taken = super().take()
        self._free.append(self._in_use)
        self._in_use = None
        self._post()
        return taken


def run_link(link, sender_type=Sender, receiver_type=Receiver, depth=2):
    """Sends three messages through one process; returns the values that the reader saw."""
    items = list(islice(PLAN.items(), 3))
    sender = sender_type(link, LAYOUTS, CPU)
    receiver = receiver_type(link, LAYOUTS, iter(items), depth, CPU, "link 0 -> 1")
    seen = []
    for item in items:
        labels = torch.arange(2) + item.number
        sender.send(item, {LABELS: labels, ACTIVATIONS: labels[:, None].float()})
        _, parts = receiver.take()
        seen.append((parts[LABELS].tolist(), parts[ACTIVATIONS].flatten().tolist()))
        sender.wait()
    receiver.check()
    return seen


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_link_uses_its_buffers_correctly(link, depth):
    assert run_link(link, depth=depth) == [([n, n + 1], [n, n + 1]) for n in (1, 2, 3)]


def test_a_sender_that_does_not_wait_is_found(link):
    with pytest.raises(LinkError, match="written while it was being sent"):
        run_link(link, sender_type=ForgetsToWait)


def test_a_slot_posted_while_in_use_reads_as_poison(link):
    labels, activations = run_link(link, receiver_type=PostsSlotInUse, depth=1)[0]
    assert labels == [-1, -1]
    assert all(math.isnan(value) for value in activations)

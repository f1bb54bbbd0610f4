"""Test batches at a receiver whose sender may be started again."""

from __future__ import annotations

import threading

import pytest
import torch

from dglpipe.config import AsyncConfig
from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.errors import PeerLostError
from dglpipe.methods.dgl_async.progress_engine import ThreadProgressEngine
from dglpipe.methods.dgl_async.receiver import AsyncReceiver
from dglpipe.methods.dgl_async.replay import Replay
from dglpipe.methods.dgl_async.sender import AsyncSender
from dglpipe.methods.dgl_async.storage import StorageFormat
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.message import ACTIVATIONS, LABELS, MessageFormat, contiguous_field
from dglpipe.pipeline.transport import Header

CPU = torch.device("cpu")
FIELDS = (
    contiguous_field(LABELS, torch.int64, ()),
    contiguous_field(ACTIVATIONS, torch.float32, (2,)),
)
LAYOUTS = {phase: MessageFormat(1, FIELDS) for phase in Phase}
BATCHES = 3
"""Test batches of an evaluation."""
TRAIN, TEST = Phase.TRAIN, Phase.TEST


class Wire:
    """A transport: messages that the test puts on it, or the loss of the neighbour.

    Attributes:
        sent: headers of the messages that were sent.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._coming = []
        self.sent = []

    def put(self, *messages):
        with self._changed:
            self._coming += messages
            self._changed.notify_all()

    def isend(self, tensor):
        return Transfer(self, tensor, sends=True)

    def irecv(self, tensor):
        return Transfer(self, tensor, sends=False)

    def copy(self, target, source):
        target.copy_(source)

    def fill(self, target, value):
        target.fill_(value)

    def next(self):
        with self._changed:
            assert self._changed.wait_for(lambda: self._coming, 20)
            return self._coming.pop(0)


class Transfer:
    def __init__(self, wire, buffer, sends):
        self.wire, self.buffer, self.sends = wire, buffer, sends

    def wait(self):
        message = self.wire.next()
        if message == "lost":
            raise PeerLostError("lost")
        words = self.buffer[:24].view(torch.int64)
        if self.sends:
            self.wire.sent.append(words.tolist())
        else:
            words.copy_(torch.tensor([int(message[0]), message[1], 1]))


class Relink:
    """New wires in place of lost ones, when the test gives them."""

    def __init__(self):
        self.wires = []
        self.may = threading.Semaphore(0)

    def __call__(self, error, since):
        assert isinstance(error, PeerLostError)
        assert self.may.acquire(timeout=20)
        return self.wires.pop(0)

    def give(self, wire):
        self.wires.append(wire)
        self.may.release()


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def relink():
    return Relink()


@pytest.fixture
def box(wire, relink):
    storage = StorageFormat(AsyncConfig(), Device(CPU, "gloo"), torch.float32)
    engine = ThreadProgressEngine("link")
    more = (storage, 100, "link", engine, (), relink, BATCHES)
    return AsyncReceiver(wire, LAYOUTS, CPU, Replay(4), 8, *more)


def item(number):
    return BatchItem(TEST, number, 1, 1, 0, 1, 1, number % BATCHES == 0, 0, 1, 1)


def take(box, count):
    """The numbers of the next test batches; None: the rest of an evaluation was lost."""
    numbers = []
    for _ in range(count):
        numbers.append(box.next_test())
        if numbers[-1] is not None:
            box.test(item(numbers[-1]))
    return numbers


def test_the_loss_of_the_sender_ends_an_evaluation(box, wire, relink):
    wire.put((TEST, 1), (TEST, 2), "lost")
    assert take(box, 3) == [1, 2, None]
    new = Wire()
    relink.give(new)
    new.put((TEST, 3), (TRAIN, 7), (TEST, 4))
    assert take(box, 2) == [3, 4]


def test_the_end_of_an_evaluation_keeps_its_place_in_the_queue(box, wire, relink):
    """The stage may take its test batches long after they have come."""
    new = Wire()
    relink.give(new)
    wire.put((TEST, 1), "lost")
    new.put((TEST, 4), (TEST, 5), (TEST, 6))
    assert take(box, 5) == [1, None, 4, 5, 6]


def test_between_two_evaluations_nothing_is_lost(box, wire, relink):
    new = Wire()
    relink.give(new)
    wire.put((TEST, 1), (TEST, 2), (TEST, 3), (TRAIN, 1), "lost")
    new.put((TRAIN, 2), (TEST, 4))
    assert take(box, 4) == [1, 2, 3, 4]


def test_a_training_batch_ends_an_evaluation(box, wire):
    """The stage below has lost the rest with its own sender."""
    wire.put((TEST, 1), (TRAIN, 1), (TEST, 5))
    assert take(box, 3) == [1, None, 5]


def test_a_test_batch_can_be_skipped(box, wire):
    wire.put((TEST, 1), (TEST, 2))
    assert box.next_test() == 1
    box.skip_test()
    assert take(box, 1) == [2]


def test_batches_can_be_read_while_the_sender_is_away(box, wire, relink):
    wire.put((TRAIN, 1), (TRAIN, 2), "lost")
    box.wait()
    assert all(box.read() is not None for _ in range(20))
    new = Wire()
    relink.give(new)
    new.put((TEST, 1))
    assert box.next_test() == 1


def test_a_message_is_sent_again_over_the_new_link(wire, relink):
    box = AsyncSender(wire, LAYOUTS, CPU, 2, True, ThreadProgressEngine("link"), relink)
    parts = {LABELS: torch.zeros(1, dtype=torch.int64), ACTIVATIONS: torch.zeros(1, 2)}
    wire.put("sent", "lost")
    for number in (1, 2, 3):
        box.send(Header(TEST, number, 1), parts)
    new = Wire()
    relink.give(new)
    new.put("sent", "sent")
    box.close()
    assert [number for _, number, _ in wire.sent + new.sent] == [1, 2, 3]


def test_without_restarts_the_loss_ends_the_stage(wire):
    box = AsyncSender(wire, LAYOUTS, CPU, 2, True, ThreadProgressEngine("link"))
    wire.put("lost")
    box.send(
        Header(TRAIN, 1, 1),
        {LABELS: torch.zeros(1, dtype=torch.int64), ACTIVATIONS: torch.zeros(1, 2)},
    )
    with pytest.raises(PeerLostError):
        box.close()

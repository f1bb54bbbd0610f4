"""Transfers tracked by device events: the process polls them and never waits."""

from __future__ import annotations

import pytest
import torch

from dglpipe.config import AsyncConfig
from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.methods.dgl_async import progress_engine
from dglpipe.methods.dgl_async.progress_engine import EventProgressEngine
from dglpipe.methods.dgl_async.receiver import AsyncReceiver
from dglpipe.methods.dgl_async.replay import Replay
from dglpipe.methods.dgl_async.sender import AsyncSender
from dglpipe.methods.dgl_async.storage import StorageFormat
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.message import ACTIVATIONS, LABELS, MessageFormat, contiguous_field
from dglpipe.pipeline.transport import Header, Slot

CPU = torch.device("cpu")
FIELDS = (
    contiguous_field(LABELS, torch.int64, ()),
    contiguous_field(ACTIVATIONS, torch.float32, (2,)),
)
LAYOUTS = {phase: MessageFormat(3, FIELDS) for phase in Phase}


class Transfer:
    """A transfer that ends when the test advances the device."""

    def __init__(self, device, do=lambda: None):
        self.device, self.do, self.is_through = device, do, False

    def wait(self):
        assert self.device.inside, "waited for on the stream that computes"
        self.device.last = self

    def finish(self):
        if not self.is_through:
            self.do()
            self.is_through = True


class FakeDevice:
    """Streams and events; the fake device records the last transfer."""

    def __init__(self):
        self.inside, self.last, self.waits = False, None, 0
        self.transfers = []

    def stream(self, _device):
        return self

    def __enter__(self):
        self.inside = True

    def __exit__(self, *_):
        self.inside = False

    def event(self, _device):
        return FakeEvent(self)

    def isend(self, tensor):
        self.transfers.append(Transfer(self))
        return self.transfers[-1]

    def irecv(self, tensor):
        self.buffer = tensor
        self.transfers.append(Transfer(self))
        return self.transfers[-1]

    def copy(self, target, source):
        target.copy_(source)

    def fill(self, target, value):
        target.fill_(value)


class FakeEvent:
    def __init__(self, device):
        self.device = device

    def record(self):
        assert self.device.inside
        self.transfer = self.device.last

    def query(self):
        return self.transfer.is_through

    def synchronize(self):
        self.device.waits += 1
        self.transfer.finish()


@pytest.fixture
def device(monkeypatch):
    fake = FakeDevice()
    monkeypatch.setattr(progress_engine.torch, "Stream", fake.stream)
    monkeypatch.setattr(progress_engine.torch, "Event", fake.event)
    return fake


def parts(number):
    return {LABELS: torch.full((3,), number), ACTIVATIONS: torch.full((3, 2), float(number))}


def test_a_sender_issues_when_polled_and_drops_late_messages(device):
    box = AsyncSender(device, LAYOUTS, CPU, 2, True, EventProgressEngine(CPU))
    for number in (1, 2, 3):
        box.send(Header(Phase.TRAIN, number, 3), parts(number))
    assert (len(device.transfers), box.dropped) == (1, 1)
    device.transfers[0].finish()
    assert len(device.transfers) == 1, "the engine was not polled"
    box.send(Header(Phase.TRAIN, 4, 3), parts(4))
    assert (len(device.transfers), box.dropped) == (2, 1)
    assert device.waits == 0
    box.close()
    assert len(device.transfers) == 3
    assert device.waits == 2


def message(number, phase=Phase.TRAIN):
    slot = Slot(LAYOUTS, CPU)
    slot.buffer.zero_()
    header = Header(phase, number, 3)
    for name, value in parts(number).items():
        slot.views(header)[name].copy_(value)
    slot.words.copy_(torch.tensor([int(phase), number, 3]))
    return slot.buffer


def test_a_receiver_sees_completed_transfers_without_waiting(device, monkeypatch):
    keeping = StorageFormat(AsyncConfig(), Device(CPU, "gloo"), torch.float32)
    box = AsyncReceiver(
        device, LAYOUTS, CPU, Replay(2), 4, keeping, 1, "link", EventProgressEngine(CPU)
    )

    def come(number, phase=Phase.TRAIN):
        buffer = device.buffer
        device.transfers[-1].do = lambda: buffer.copy_(message(number, phase))
        device.transfers[-1].finish()
        # What the engine copied after the transfer was issued before; the device does it now.
        ferry_words = box._engine._under_way[2]
        ferry_words.copy_(torch.tensor([int(phase), number, 3]))

    assert box.read() is None
    come(1)
    come_first = box.read()
    assert come_first.features[0, 0] == 1
    for number in (2, 3):
        come(number)
        assert not box.has_test
    assert torch.equal(come_first.features, parts(1)[ACTIVATIONS]), "it is still learnt from"
    assert [int(box.read(learns=False).labels[0]) for _ in range(2)] == [3, 2]
    assert box.read(learns=False) is None
    assert device.waits == 0
    come(1, Phase.TEST)
    assert box.has_test
    item = BatchItem(Phase.TEST, 1, 1, 1, 0, 3, 3, True, 0, 1, 1)
    assert box.test(item)[LABELS].tolist() == [1, 1, 1]
    box.close()
    assert device.waits == 0
    assert len(device.transfers) == 4, "no receive is issued after the last test batch"

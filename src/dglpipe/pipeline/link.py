"""The one-way channel from stage j to stage j + 1.

Messages sent and not yet taken, both sides together, are at most D: the sender owns one
slot, the receiver posts D - 1 receives ahead. With the slot in use (backward still reads
it) the receiver needs max(1, D) buffers. For D = 2, time running down:

    stage j              wire            stage j + 1
    forward 1, send 1   ------>          receive 1 posted at the start
    learn 1                              take 1, post receive 2
    forward 2                            forward 1 ... learn 1
    wait for send 1
    send 2              ------>          take 2, post receive 3 into the slot of 1

What "wait" means is the transport's: with gloo the process waits, with NCCL the current
stream does, and the code is the same. So a slot is written or posted again only after
every reader of it has been issued.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.errors import LinkError
from dglpipe.pipeline.message import HEADER, MessageFormats
from dglpipe.pipeline.transport import Slot, Transport, Work


@dataclass(frozen=True, slots=True)
class LinkBuffers:
    """Memory of the link j -> j+1.

    Attributes:
        sender: message slots at stage j.
        receiver: message slots at stage j + 1.
        stored: batches that stage j + 1 keeps outside the slots.
        stored_item_bytes: bytes of one stored number; None: as on the link.
    """

    sender: int
    receiver: int
    stored: int = 0
    stored_item_bytes: int | None = None

    def sender_bytes(self, row_bytes: int) -> int:
        """Bytes a row at stage j.

        Args:
            row_bytes: bytes of a row on the link.
        """
        return self.sender * row_bytes

    def receiver_bytes(self, row_bytes: int, item_bytes: int) -> int:
        """Bytes a row at stage j + 1.

        Args:
            row_bytes: bytes of a row on the link.
            item_bytes: bytes of one number on the link.
        """
        stored = self.stored * row_bytes * (self.stored_item_bytes or item_bytes) // item_bytes
        return self.receiver * row_bytes + stored


class Sender:
    """The end of a link at stage j."""

    def __init__(self, transport: Transport, layouts: MessageFormats, device: torch.device) -> None:
        self._transport = transport
        self._slot = Slot(layouts, device)
        self._stamped: tuple[int, ...] = (-1, -1, -1)
        self._work: Work | None = None

    def wait(self) -> None:
        """Returns when the slot may be written: the message before has left it."""
        if self._work is not None:
            self._work.wait()
            self._work = None

    def send(self, item: BatchItem, parts: Mapping[str, Tensor]) -> None:
        """Copies `parts` (each (rows, ...)) into the slot and issues the transfer."""
        if self._work is not None:
            self.wait()
        views = self._slot.views(item)
        self._stamp(int(item.phase), item.number, item.rows)
        for name, tensor in parts.items():
            self._transport.copy(views[name], tensor)
        self._work = self._transport.isend(self._slot.message(item))

    def _stamp(self, *words: int) -> None:
        """Writes what has changed of the header: from step to step one word."""
        for at, word in enumerate(words):
            if word != self._stamped[at]:
                self._transport.fill(self._slot.header[at], word)
        self._stamped = words


class Receiver:
    """The end of a link at stage j + 1.

    Args:
        items: every message that will come, in order.
        depth: D.
        name: `link j -> j+1`, for errors.
    """

    def __init__(
        self,
        transport: Transport,
        layouts: MessageFormats,
        items: Iterator[BatchItem],
        depth: int,
        device: torch.device,
        name: str,
    ) -> None:
        self._transport = transport
        self._items = items
        self._free = deque(Slot(layouts, device) for _ in range(depth))
        self._posted: deque[tuple[BatchItem, Slot, Work]] = deque()
        self._in_use: Slot | None = None
        self._headers = HeaderLog(name, device)
        for _ in range(depth - 1):
            self._post()

    def take(self) -> tuple[BatchItem, dict[str, Tensor]]:
        """The next message. Its tensors may be read until the next call, which posts a
        receive into their buffer."""
        if self._in_use is not None:
            self._free.append(self._in_use)
        if not self._posted:
            self._post()
        item, slot, work = self._posted.popleft()
        work.wait()
        self._in_use = slot
        self._post()
        views = slot.views(item)
        self._headers.add(self._transport, item, views[HEADER])
        return item, views

    def check(self) -> None:
        """Compares the headers that have come with the plan; waits for the device.

        Raises:
            LinkError: a message was not the announced one.
        """
        self._headers.check()

    def _post(self) -> None:
        """Posts the receive of the next message if there is one and a slot for it."""
        if not self._free:
            return
        item = next(self._items, None)
        if item is not None:
            slot = self._free.popleft()
            self._posted.append((item, slot, self._transport.irecv(slot.message(item))))


class HeaderLog:
    """Headers that came, kept on the device so that no step waits to compare them."""

    CAPACITY = 512

    def __init__(self, name: str, device: torch.device) -> None:
        self._name = name
        self._came = torch.zeros(self.CAPACITY, 3, dtype=torch.int64, device=device)
        self._rows = self._came.unbind()
        self._expected: list[BatchItem] = []

    def add(self, transport: Transport, item: BatchItem, header: Tensor) -> None:
        """Notes `header` (3,) as what came where `item` was expected."""
        if len(self._expected) == self.CAPACITY:
            self.check()
        transport.copy(self._rows[len(self._expected)], header)
        self._expected.append(item)

    def check(self) -> None:
        came = self._came[: len(self._expected)].tolist()
        expected, self._expected = self._expected, []
        for item, (phase, number, rows) in zip(expected, came, strict=True):
            if (phase, number, rows) != (item.phase, item.number, item.rows):
                names = {int(known): known.name.lower() for known in Phase}
                what = f"{names.get(phase, f'phase {phase}')} batch {number} of {rows} rows"
                raise LinkError(
                    f"{self._name}: the receiver expected {item}, the sender sent {what}. "
                    "The two processes follow different plans or a message was damaged; "
                    "the weights of this run cannot be trusted past that step"
                )

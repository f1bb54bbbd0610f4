"""The link from stage j to stage j + 1, and links down the chain, which work the same way.

At most D messages are sent and not yet taken, on both sides together: the sender owns one slot,
and the receiver posts D - 1 receives ahead. The receiver needs max(1, D) buffers, because
backward still reads the slot in use. The schedule for D = 2, with time running down:

    stage j              wire            stage j + 1
    forward 1, send 1   ------>          receive 1 posted at the start
    learn 1                              take 1, post receive 2
    forward 2                            forward 1 ... learn 1
    wait for send 1
    send 2              ------>          take 2, post receive 3 into the slot of 1

The transport defines "wait": with gloo the process waits, with NCCL the current stream waits.
The same code serves both, so a slot is written or posted again only after every operation that
reads the slot has been issued.
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
        sender: number of message slots at stage j.
        receiver: number of message slots at stage j + 1.
        stored: number of batches that stage j + 1 stores outside the slots.
        stored_item_bytes: bytes of one stored number; None: as on the link.
    """

    sender: int
    receiver: int
    stored: int = 0
    stored_item_bytes: int | None = None

    def sender_bytes(self, row_bytes: int) -> int:
        """Bytes per row at stage j.

        Args:
            row_bytes: bytes of a row on the link.
        """
        return self.sender * row_bytes

    def receiver_bytes(self, row_bytes: int, item_bytes: int) -> int:
        """Bytes per row at stage j + 1.

        Args:
            row_bytes: bytes of a row on the link.
            item_bytes: bytes of one number on the link.
        """
        stored = self.stored * row_bytes * (self.stored_item_bytes or item_bytes) // item_bytes
        return self.receiver * row_bytes + stored


@dataclass(frozen=True, slots=True)
class Stash:
    """What a stage keeps of earlier steps because of messages that come down: the first five in
    batches, the last two in messages.

    Attributes:
        inputs: inputs of the stage.
        outputs: outputs of the stage.
        weights: copies of the weights of the stage.
        from_above: slots of messages from the stage above, each with a number for every number of
            the output.
        to_below: messages to the stage below that are under way, each with a number for every
            number of the input.
        copies_from_above: messages with the weights of the first segment of the stage above.
        copies_to_below: messages with the weights of the first segment of the stage.
    """

    inputs: int = 0
    outputs: int = 0
    weights: int = 0
    from_above: int = 0
    to_below: int = 0
    copies_from_above: int = 0
    copies_to_below: int = 0


class Sender:
    """The sending end of a link, at stage j."""

    def __init__(self, transport: Transport, layouts: MessageFormats, device: torch.device) -> None:
        self._transport = transport
        self._slot = Slot(layouts, device)
        self._header: tuple[int, ...] = (-1, -1, -1)
        self._work: Work | None = None

    def wait(self) -> None:
        """Waits until the slot may be written: the previous message has left."""
        if self._work is not None:
            self._work.wait()
            self._work = None

    def send(self, item: BatchItem, parts: Mapping[str, Tensor]) -> None:
        """Copies `parts`, each (rows, ...), to the slot and starts the transfer."""
        if self._work is not None:
            self.wait()
        views = self._slot.views(item)
        self._write_header(int(item.phase), item.number, item.rows)
        for name, tensor in parts.items():
            self._transport.copy(views[name], tensor)
        self._work = self._transport.isend(self._slot.message(item))

    def _write_header(self, *words: int) -> None:
        """Writes the words of the header that differ from the previous message."""
        for at, word in enumerate(words):
            if word != self._header[at]:
                self._transport.fill(self._slot.header[at], word)
        self._header = words


class Receiver:
    """The receiving end of a link, at stage j + 1.

    Args:
        items: the batches of all messages, in order.
        depth: D.
        name: `link j -> j+1`, for error messages.
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
        """Receives the next message.

        The tensors are valid until the next call, which posts a receive into their buffer.

        Returns:
            The batch of the message, and the parts by name.
        """
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
        """Compares the received headers with the batch schedule; synchronizes with the device.

        Raises:
            LinkError: a message differs from the batch schedule.
        """
        self._headers.compare()

    def _post(self) -> None:
        """Posts the receive of the next message, if a message and a free slot remain."""
        if not self._free:
            return
        item = next(self._items, None)
        if item is not None:
            slot = self._free.popleft()
            self._posted.append((item, slot, self._transport.irecv(slot.message(item))))


class HeaderLog:
    """Received headers, stored on the device so that no step synchronizes to compare them."""

    CAPACITY = 512

    def __init__(self, name: str, device: torch.device) -> None:
        self._name = name
        self._received = torch.zeros(self.CAPACITY, 3, dtype=torch.int64, device=device)
        self._rows = self._received.unbind()
        self._expected: list[BatchItem] = []

    def add(self, transport: Transport, item: BatchItem, header: Tensor) -> None:
        """Stores the received `header` (3,) and the expected `item`."""
        if len(self._expected) == self.CAPACITY:
            self.compare()
        transport.copy(self._rows[len(self._expected)], header)
        self._expected.append(item)

    def compare(self) -> None:
        """Compares and removes all stored headers.

        Raises:
            LinkError: a header differs from the expected batch.
        """
        received = self._received[: len(self._expected)].tolist()
        expected, self._expected = self._expected, []
        for item, (phase, number, rows) in zip(expected, received, strict=True):
            if (phase, number, rows) != (item.phase, item.number, item.rows):
                names = {int(known): known.name.lower() for known in Phase}
                what = f"{names.get(phase, f'phase {phase}')} batch {number} of {rows} rows"
                raise LinkError(
                    f"{self._name}: the receiver expected {item}, the sender sent {what}. "
                    "The two processes have different batch schedules, or a message is corrupt. "
                    "The weights are wrong from this step on; earlier checkpoints are valid"
                )

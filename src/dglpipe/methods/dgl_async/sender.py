"""The sending end of a link of asynchronous learning."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.errors import PeerLostError
from dglpipe.methods.dgl_async.progress_engine import ProgressEngine, Words
from dglpipe.pipeline.message import MessageFormats
from dglpipe.pipeline.stage_links import Relink
from dglpipe.pipeline.transport import Header, Slot, Transport, Work


class AsyncSender:
    """Holds messages until they are sent.

        stage j          sender: up to D messages
        send   ──▶  [oldest | ... | newest] ══ link ══▶
                    a new message replaces the oldest
                    training message that is not yet sent

    Args:
        slots: number of message slots: D with policy=overwrite, 1 with policy=block.
        drops: whether a new training message may replace a message that is not yet sent.
        engine: issues the sends.
        relink: see `ProcessGroup.relink_following`.

    Attributes:
        dropped: number of messages that were replaced.
    """

    def __init__(
        self,
        transport: Transport,
        formats: MessageFormats,
        device: torch.device,
        slots: int,
        drops: bool,
        engine: ProgressEngine,
        relink: Relink | None = None,
    ) -> None:
        self.dropped = 0
        self._relink = relink
        self._transport = transport
        self._drops = drops
        self._free = deque(Slot(formats, device) for _ in range(slots))
        self._count = slots
        self._unsent: deque[tuple[Slot, Phase]] = deque()
        self._closing = False
        self._engine = engine
        engine.start(self)

    def send(self, item: BatchItem | Header, parts: Mapping[str, Tensor]) -> None:
        """Copies `parts`, each (rows, ...), into a slot to be sent. Waits for a free slot if no
        message may be dropped."""
        slot = self._claim_slot(item.phase)
        views = slot.views(item)
        for word, value in zip(slot.header, (item.phase, item.number, item.rows), strict=True):
            self._transport.fill(word, int(value))
        for name, tensor in parts.items():
            self._transport.copy(views[name], tensor)
        with self._engine:
            self._unsent.append((slot, item.phase))
            self._engine.changed()

    def wait(self) -> None:
        """Returns at once: `send` waits."""

    def close(self) -> None:
        """Returns when all messages are sent."""
        with self._engine:
            self._closing = True
            self._engine.changed()
        self._engine.finish()

    def next_slot(self) -> Slot | None:
        """The slot of the oldest message."""
        return self._unsent.popleft()[0] if self._unsent else None

    def issue(self, slot: Slot) -> Work:
        """Issues a send. All messages of a link have the same size, because the receiver does not
        know which message comes next."""
        return self._transport.isend(slot.buffer)

    def completed(self, slot: Slot, words: Words) -> None:
        """Frees the slot of a sent message."""
        del words
        self._free.append(slot)

    def lost(self) -> None:
        """Does nothing: `issue` sends the message again."""

    def relink(self, error: PeerLostError, since: float) -> None:
        """Connects to the next process of the stage above, if stages can be started again."""
        if self._relink is None:
            raise error
        self._transport = self._relink(error, since)

    @property
    def is_over(self) -> bool:
        """Whether the link is closed and all messages are sent."""
        return self._closing and len(self._free) == self._count

    def _claim_slot(self, phase: Phase) -> Slot:
        with self._engine:
            drops = self._drops and phase is Phase.TRAIN
            self._engine.wait_for(lambda: self._free or (drops and self._oldest() is not None))
            if self._free:
                return self._free.popleft()
            oldest = self._oldest()
            assert oldest is not None
            self._unsent.remove(oldest)
            self.dropped += 1
            return oldest[0]

    def _oldest(self) -> tuple[Slot, Phase] | None:
        """The oldest message that may be dropped."""
        return next((one for one in self._unsent if one[1] is Phase.TRAIN), None)

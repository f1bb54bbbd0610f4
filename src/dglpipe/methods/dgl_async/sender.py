"""The sending end of a link of asynchronous learning."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.methods.dgl_async.progress_engine import ProgressEngine, Words
from dglpipe.pipeline.transport import Header, MessageFormats, Slot, Transport, Work


class AsyncSender:
    """Holds messages until they are sent.

        stage j          outbox: up to D messages
        send   ──▶  [oldest | ... | newest] ══ link ══▶
                    a newer one takes the place of
                    the oldest that has not been sent

    Args:
        slots: messages that it holds: D of a link that overwrites, 1 of one that blocks.
        drops: whether a newer message of training may take the place of one that has not been
            sent.

    Attributes:
        dropped: messages that were never sent.
    """

    def __init__(
        self,
        transport: Transport,
        layouts: MessageFormats,
        device: torch.device,
        slots: int,
        drops: bool,
        ferry: ProgressEngine,
    ) -> None:
        self.dropped = 0
        self._transport = transport
        self._drops = drops
        self._free = deque(Slot(layouts, device) for _ in range(slots))
        self._count = slots
        self._unsent: deque[tuple[Slot, Phase]] = deque()
        self._closing = False
        self._ferry = ferry
        ferry.start(self)

    def send(self, item: BatchItem | Header, parts: Mapping[str, Tensor]) -> None:
        """Takes a copy of `parts`, each (rows, ...), to be sent; waits for a place where nothing
        may be dropped."""
        slot = self._place(item.phase)
        views = slot.views(item)
        for word, value in zip(slot.header, (item.phase, item.number, item.rows), strict=True):
            self._transport.fill(word, int(value))
        for name, tensor in parts.items():
            self._transport.copy(views[name], tensor)
        with self._ferry:
            self._unsent.append((slot, item.phase))
            self._ferry.changed()

    def wait(self) -> None:
        """Nothing to wait for: `send` does."""

    def close(self) -> None:
        """Returns when all has been sent."""
        with self._ferry:
            self._closing = True
            self._ferry.changed()
        self._ferry.finish()

    def next_slot(self) -> Slot | None:
        """The oldest message."""
        return self._unsent.popleft()[0] if self._unsent else None

    def issue(self, slot: Slot) -> Work:
        """All messages have one size: who receives cannot know which comes next."""
        return self._transport.isend(slot.buffer)

    def through(self, slot: Slot, words: Words) -> None:
        """The message has left."""
        del words
        self._free.append(slot)

    @property
    def is_over(self) -> bool:
        return self._closing and len(self._free) == self._count

    def _place(self, phase: Phase) -> Slot:
        with self._ferry:
            drops = self._drops and phase is Phase.TRAIN
            self._ferry.wait_for(lambda: self._free or (drops and self._oldest() is not None))
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

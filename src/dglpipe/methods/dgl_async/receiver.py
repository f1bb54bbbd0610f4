"""The receiving end of a link of asynchronous learning."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.errors import LinkError
from dglpipe.methods.dgl_async.progress_engine import ProgressEngine, Words
from dglpipe.methods.dgl_async.replay import InOrder, Replay
from dglpipe.methods.dgl_async.storage import Batch, StorageFormat
from dglpipe.pipeline.message import ACTIVATIONS, LABELS
from dglpipe.pipeline.transport import Header, MessageFormats, Slot, Transport, Work


@dataclass(slots=True, eq=False)
class Held:
    """A batch in a buffer."""

    batch: Batch
    slot: Slot | None
    """Whose memory it is; None: its own."""
    is_gone: bool = False
    """Whether it has left the buffer."""


Buffer = Replay[Held] | InOrder[Held]


class AsyncReceiver:
    """Takes in what comes, and has it ready to be read.

    Args:
        replay: the batches of training that have come.
        slots: messages that it has memory for.
        keeping: how batches are kept.
        last_test: number of the test batch behind which nothing comes.
        name: `link j -> j+1`.
    """

    def __init__(
        self,
        transport: Transport,
        layouts: MessageFormats,
        device: torch.device,
        replay: Buffer,
        slots: int,
        keeping: StorageFormat,
        last_test: int,
        name: str,
        ferry: ProgressEngine,
    ) -> None:
        self.is_over = False
        self._name = name
        self._transport = transport
        self._most_rows = {phase: layout.rows for phase, layout in layouts.items()}
        self._replay = replay
        self._keeping = keeping
        self._last_test = last_test
        self._free = deque(Slot(layouts, device) for _ in range(slots))
        self._tests: deque[tuple[Header, Slot, int]] = deque()
        self._is_waiting = False
        self._learning: Held | None = None
        self._testing: Slot | None = None
        self._came = self._seen = 0
        self._ferry = ferry
        ferry.start(self)

    def know_of(self, produced: int) -> None:
        """The stage below has made so many outputs, whether they have come or not."""
        if isinstance(self._replay, Replay):
            with self._ferry:
                self._replay.produced = produced

    def read(self, learns: bool = True) -> Batch | None:
        """A batch by the rule of the buffer; None: there is none. It may be read until the next
        call.

        Args:
            learns: whether the stage learns from it. One that does not hands it on unchanged by
                any update, so that it wants those alone that it has not read yet.
        """
        with self._ferry:
            self._let_go()
            self._seen = self._came
            read = self._replay.read(not learns, learns)
            if read is None:
                return None
            self._learning = read.value
            if not self._replay.keeps:
                read.value.is_gone = True
        return self._keeping.bring(read.value.batch)

    @property
    def has_test(self) -> bool:
        """Whether a test batch is there to be taken. Where every batch is read once, those that
        came before it are read first."""
        with self._ferry:
            return self._is_tested_next()

    def _is_tested_next(self) -> bool:
        if not self._tests or self._replay.keeps:
            return bool(self._tests)
        usage = self._replay.usage
        return usage.reads + usage.handed_on >= self._tests[0][2]

    def test(self, item: BatchItem) -> Mapping[str, Tensor]:
        """The parts of the test batch `item`, when it has come; they may be read until the next
        call.

        Raises:
            LinkError: another one came.
        """
        with self._ferry:
            self._let_go()
            self._wait_for(lambda: self._tests)
            header, self._testing, _ = self._tests.popleft()
        if header != (item.phase, item.number, item.rows):
            raise LinkError(f"{self._name}: the receiver expected {item}, the sender sent {header}")
        return self._testing.views(item)

    def wait(self) -> None:
        """Returns when a test batch is there, or something has come since the last read."""
        with self._ferry:
            self._let_go()
            self._wait_for(lambda: self._is_tested_next() or self._came != self._seen)
            self._seen = self._came

    def close(self) -> None:
        """Returns when the last message has come."""
        with self._ferry:
            self._let_go()
        self._ferry.finish()

    def next_slot(self) -> Slot | None:
        """One to receive into.

        Where every batch is read once, one slot stays free for what is learnt from, so that no
        more than D - 1 messages wait here, unless the process waits for one.
        """
        in_use = self._is_waiting or self._learning is not None or self._testing is not None
        kept = 0 if self._replay.keeps or in_use else 1
        return self._free.popleft() if len(self._free) > kept else None

    def issue(self, slot: Slot) -> Work:
        """All messages have one size: who receives cannot know which comes next."""
        return self._transport.irecv(slot.buffer)

    def through(self, slot: Slot, words: Words) -> None:
        """A message has come.

        Raises:
            LinkError: its header is none.
        """
        header = self._header(words)
        self._came += 1
        if header.phase is Phase.TEST:
            self._tests.append((header, slot, self._replay.usage.written))
            self.is_over = header.number == self._last_test
            return
        views = slot.views(header)
        batch = Batch(views[ACTIVATIONS], views[LABELS])
        held = Held(batch, slot)
        if self._keeping.changes and self._replay.keeps:
            held = Held(self._keeping.keep(batch), None)
            self._free.append(slot)
        gone = self._replay.write(held, header.number)
        if gone is not None:
            gone.is_gone = True
            if gone is not self._learning and gone.slot is not None:
                self._free.append(gone.slot)

    def _wait_for(self, holds: Callable[[], object]) -> None:
        self._is_waiting = True
        self._ferry.changed()
        try:
            self._ferry.wait_for(holds)
        finally:
            self._is_waiting = False

    def _let_go(self) -> None:
        """Gives back the memory of what the process is done with."""
        freed = [self._testing]
        self._testing = None
        if self._learning is not None and self._learning.is_gone:
            freed.append(self._learning.slot)
            self._learning = None
        self._free.extend(slot for slot in freed if slot is not None)
        self._ferry.changed()

    def _header(self, words: Words) -> Header:
        phase, number, rows = words
        known = phase in tuple(Phase) and number > 0
        if not known or not 0 < rows <= self._most_rows[Phase(phase)]:
            came = f"phase {phase}, batch {number} of {rows} rows"
            raise LinkError(f"{self._name}: a header that says nothing came: {came}")
        return Header(Phase(phase), number, rows)

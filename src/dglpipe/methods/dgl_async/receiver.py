"""The receiving end of a link of asynchronous learning."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.errors import LinkError, PeerLostError
from dglpipe.methods.dgl_async.progress_engine import ProgressEngine, Words
from dglpipe.methods.dgl_async.replay import InOrder, Replay
from dglpipe.methods.dgl_async.storage import Batch, StorageFormat
from dglpipe.pipeline.message import ACTIVATIONS, LABELS, MessageFormats
from dglpipe.pipeline.stage_links import Relink
from dglpipe.pipeline.transport import Header, Slot, Transport, Work


@dataclass(slots=True, eq=False)
class Held:
    """A batch in the buffer.

    Attributes:
        slot: the message slot that holds the batch; None: the batch has memory of its own.
        is_gone: whether the batch has left the buffer.
    """

    batch: Batch
    slot: Slot | None
    is_gone: bool = False


Buffer = Replay[Held] | InOrder[Held]


class AsyncReceiver:
    """Receives messages into a replay buffer, from which the stage reads.

    Args:
        replay: the buffer of training batches.
        slots: number of message slots.
        storage: device and number format of stored batches.
        last_test: number of the last test batch, which is the last message of the link.
        name: `link j -> j+1`, for error messages.
        engine: issues the receives.
        extras: names of the declared tensors besides labels and activations.
        relink: see `ProcessGroup.relink_previous`.
        test_batches: batches of an evaluation, to notice an evaluation that has lost batches; 1:
            none is lost.
    """

    def __init__(
        self,
        transport: Transport,
        formats: MessageFormats,
        device: torch.device,
        replay: Buffer,
        slots: int,
        storage: StorageFormat,
        last_test: int,
        name: str,
        engine: ProgressEngine,
        extras: Sequence[str] = (),
        relink: Relink | None = None,
        test_batches: int = 1,
    ) -> None:
        self.is_over = False
        self._relink = relink
        self._test_batches = test_batches
        self._is_evaluating = False
        self._is_away = False
        self._name = name
        self._transport = transport
        self._most_rows = {phase: own.rows for phase, own in formats.items()}
        self._replay = replay
        self._storage = storage
        self._last_test = last_test
        self._extras = tuple(extras)
        self._free = deque(Slot(formats, device) for _ in range(slots))
        self._tests: deque[tuple[Header, Slot, int] | tuple[None, None, int]] = deque()
        self._is_waiting = False
        self._learning: Held | None = None
        self._testing: Slot | None = None
        self._arrived = self._seen = 0
        self._engine = engine
        engine.start(self)

    def know_of(self, produced: int) -> None:
        """Sets how many outputs the stage below has made, received or not."""
        if isinstance(self._replay, Replay):
            with self._engine:
                self._replay.produced = produced

    def read(self, learns: bool = True) -> Batch | None:
        """The batch that the read rule selects; None: no batch may be read. The tensors are valid
        until the next call.

        Args:
            learns: whether the stage learns from the batch. A stage that has made its updates
                only computes outputs, and reads each batch once.
        """
        with self._engine:
            self._release()
            self._seen = self._arrived
            read = self._replay.read(not learns, learns)
            if read is None:
                return None
            self._learning = read.value
            if not self._replay.keeps:
                read.value.is_gone = True
        return self._storage.load(read.value.batch)

    @property
    def has_test(self) -> bool:
        """Whether a test batch is next. With policy=block, the training batches that arrived before
        the test batch come first."""
        with self._engine:
            return self._is_test_next()

    def _is_test_next(self) -> bool:
        if not self._tests or self._replay.keeps:
            return bool(self._tests)
        usage = self._replay.usage
        return usage.reads + usage.handed_on >= self._tests[0][2]

    def test(self, item: BatchItem) -> Mapping[str, Tensor]:
        """Waits for test batch `item` and returns its parts by name. The tensors are valid until
        the next call.

        Raises:
            LinkError: another test batch arrived.
        """
        header, self._testing = self._take_test()
        if header != (item.phase, item.number, item.rows):
            raise LinkError(f"{self._name}: the receiver expected {item}, the sender sent {header}")
        assert self._testing is not None
        return self._testing.views(item)

    def next_test(self) -> int | None:
        """Waits for the next test batch and returns its number; None: the rest of the evaluation
        was lost with the stage below."""
        with self._engine:
            self._release()
            self._wait_for(lambda: self._tests)
            header, _, _ = self._tests[0]
            if header is None:
                self._tests.popleft()
                return None
            return header.number

    def skip_test(self) -> None:
        """Drops the next test batch."""
        _, self._testing = self._take_test()

    def _take_test(self) -> tuple[Header | None, Slot | None]:
        with self._engine:
            self._release()
            self._wait_for(lambda: self._tests)
            header, slot, _ = self._tests.popleft()
        return header, slot

    def wait(self) -> None:
        """Returns when a test batch is next, or a message has arrived since the last read."""
        with self._engine:
            self._release()
            self._wait_for(lambda: self._is_test_next() or self._arrived != self._seen)
            self._seen = self._arrived

    def close(self) -> None:
        """Returns when the last message has arrived."""
        with self._engine:
            self._release()
        self._engine.finish()

    def next_slot(self) -> Slot | None:
        """A slot for the next receive.

        With policy=block, one slot is reserved for the batch in use, so that the receiver holds at
        most D - 1 unread messages unless the process waits for a message.
        """
        in_use = self._is_waiting or self._learning is not None or self._testing is not None
        kept = 0 if self._replay.keeps or in_use else 1
        return self._free.popleft() if len(self._free) > kept else None

    def issue(self, slot: Slot) -> Work:
        """Issues a receive. All messages of a link have the same size, because the receiver does
        not know which message comes next."""
        return self._transport.irecv(slot.buffer)

    def completed(self, slot: Slot, words: Words) -> None:
        """Processes a received message.

        Raises:
            LinkError: a corrupt header.
        """
        phase, number, rows = words
        known = phase in tuple(Phase) and number > 0
        if not known or not 0 < rows <= self._most_rows[Phase(phase)]:
            got = f"phase {phase}, batch {number} of {rows} rows"
            raise LinkError(f"{self._name}: corrupt message header: {got}")
        header = Header(Phase(phase), number, rows)
        self._arrived += 1
        if header.phase is Phase.TEST:
            self._tests.append((header, slot, self._replay.usage.written))
            self._is_evaluating = header.number % self._test_batches != 0
            self.is_over = header.number == self._last_test
            return
        self._end_evaluation()
        views = slot.views(header)
        extras = {name: views[name] for name in self._extras}
        held = Held(Batch(views[ACTIVATIONS], views[LABELS], extras), slot)
        if self._storage.converts and self._replay.keeps:
            held = Held(self._storage.store(held.batch), None)
            self._free.append(slot)
        replaced = self._replay.write(held, header.number)
        if replaced is not None:
            replaced.is_gone = True
            if replaced is not self._learning and replaced.slot is not None:
                self._free.append(replaced.slot)

    @property
    def is_away(self) -> bool:
        """Whether the stage below has been lost and has not come back yet."""
        with self._engine:
            return self._is_away

    def lost(self) -> None:
        """Notes the loss of the stage below."""
        self._is_away = True
        self._end_evaluation()

    def _end_evaluation(self) -> None:
        """Marks the end of an evaluation whose other batches will not come."""
        if self._is_evaluating:
            self._tests.append((None, None, self._replay.usage.written))
            self._is_evaluating = False

    def relink(self, error: PeerLostError, since: float) -> None:
        """Connects to the next process of the stage below, if stages can be started again."""
        if self._relink is None:
            raise error
        self._transport = self._relink(error, since)
        self._is_away = False

    def _wait_for(self, holds: Callable[[], object]) -> None:
        self._is_waiting = True
        self._engine.changed()
        try:
            self._engine.wait_for(holds)
        finally:
            self._is_waiting = False

    def _release(self) -> None:
        """Frees the slots of batches that the process no longer uses."""
        freed = [self._testing]
        self._testing = None
        if self._learning is not None and self._learning.is_gone:
            freed.append(self._learning.slot)
            self._learning = None
        self._free.extend(slot for slot in freed if slot is not None)
        self._engine.changed()

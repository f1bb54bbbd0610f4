"""Progress engines for asynchronous transfers.

An endpoint of a link supplies the slot of the next transfer and processes completed transfers. A
progress engine issues the transfers one at a time, while the stage computes. With gloo, completion
can only be detected by `wait`, so a thread waits. On CUDA, the process queries an event that is
recorded after the transfer, and no other thread issues work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from dglpipe.errors import PeerLostError
from dglpipe.pipeline.transport import Slot, Work

Words = tuple[int, int, int]
"""Phase, number and rows: the header of a message."""


class Endpoint(Protocol):
    """One end of a link. The engine holds its lock in every call except `issue` and `relink`."""

    def next_slot(self) -> Slot | None:
        """The slot of the next transfer; None: no transfer can start yet."""

    def issue(self, slot: Slot) -> Work:
        """Issues the transfer of `slot`."""

    def completed(self, slot: Slot, words: Words) -> None:
        """Processes a completed transfer. `words` is the header of the message."""

    def lost(self) -> None:
        """Notes that the neighbour was lost during a transfer."""

    def relink(self, error: PeerLostError, since: float) -> None:
        """Connects to the next process of the lost neighbour; `issue` uses the new connection.

        Args:
            error: raised if there is no such process.
            since: when the failed transfer was issued, in seconds of `time.monotonic`.
        """

    @property
    def is_over(self) -> bool:
        """Whether the last transfer has completed."""


class ProgressEngine(Protocol):
    """Issues the transfers of one endpoint."""

    def start(self, end: Endpoint) -> None: ...

    def __enter__(self) -> object:
        """Takes the lock and completes transfers; raises the error of a failed transfer."""

    def __exit__(self, *_: object) -> None: ...

    def changed(self) -> None:
        """Wakes the engine after a change of the endpoint; the caller holds the lock."""

    def wait_for(self, holds: Callable[[], object]) -> None:
        """Returns when `holds()` is true; raises the error of a failed transfer. The caller holds
        the lock."""

    def finish(self) -> None:
        """Returns after the last transfer of the endpoint."""


class ThreadProgressEngine:
    """A thread that waits for each transfer.

    Args:
        name: name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, name=name, daemon=True)
        self._end: Endpoint | None = None

    def start(self, end: Endpoint) -> None:
        self._end = end
        self._thread.start()

    def __enter__(self) -> object:
        self._changed.__enter__()
        if self._error is not None:
            self._changed.__exit__(None, None, None)
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self._changed.__exit__(None, None, None)

    def changed(self) -> None:
        self._changed.notify_all()

    def wait_for(self, holds: Callable[[], object]) -> None:
        self._changed.wait_for(lambda: self._error is not None or holds())
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _guarded(self) -> None:
        assert self._end is not None
        try:
            self._run(self._end)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _run(self, end: Endpoint) -> None:
        while True:
            slot: Slot | None = None
            with self._changed:
                while slot is None:
                    if end.is_over:
                        return
                    slot = end.next_slot()
                    if slot is None:
                        self._changed.wait()
            self._transfer(end, slot)
            phase, number, rows = (int(word) for word in slot.header)
            with self._changed:
                end.completed(slot, (phase, number, rows))
                self._changed.notify_all()

    def _transfer(self, end: Endpoint, slot: Slot) -> None:
        """Transfers `slot`; again if the neighbour was lost and started again."""
        while True:
            since = time.monotonic()
            try:
                end.issue(slot).wait()
                return
            except PeerLostError as error:
                with self._changed:
                    end.lost()
                    self._changed.notify_all()
                end.relink(error, since)


class EventProgressEngine:
    """Queries device events for completion; the host does not wait for the device.

    After the transfer, the header is copied to the host on a separate stream, so that reading the
    header does not wait for the computation of the stage.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: Any = torch.Stream(device)
        self._device = device
        self._end: Endpoint | None = None
        self._under_way: tuple[Slot, Any, torch.Tensor] | None = None

    def start(self, end: Endpoint) -> None:
        self._end = end
        self._poll()

    def __enter__(self) -> object:
        self._poll()
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing: there is no lock, because no other thread uses the endpoint."""

    def changed(self) -> None:
        self._poll()

    def wait_for(self, holds: Callable[[], object]) -> None:
        while not holds():
            assert self._under_way is not None, "no transfer is in progress"
            self._under_way[1].synchronize()
            self._poll()

    def finish(self) -> None:
        assert self._end is not None
        end = self._end
        self.wait_for(lambda: end.is_over)

    def _poll(self) -> None:
        """Completes transfers and issues the next one."""
        assert self._end is not None
        while True:
            if self._under_way is None:
                slot = None if self._end.is_over else self._end.next_slot()
                if slot is None:
                    return
                self._under_way = self._issue(slot)
            slot, event, words = self._under_way
            if not event.query():
                return
            self._under_way = None
            phase, number, rows = words.tolist()
            self._end.completed(slot, (phase, number, rows))

    def _issue(self, slot: Slot) -> tuple[Slot, Any, torch.Tensor]:
        assert self._end is not None
        words = torch.empty(3, dtype=torch.int64, pin_memory=self._device.type != "cpu")
        work = self._end.issue(slot)
        event = torch.Event(self._device)
        with self._stream:
            work.wait()  # only this stream waits for the transfer
            words.copy_(slot.words, non_blocking=True)
            event.record()
        return slot, event, words

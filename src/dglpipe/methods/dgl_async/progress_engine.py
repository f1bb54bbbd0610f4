"""What carries the messages of a link whatever the stage is doing.

An end of a link says which slot is next and what to do when it is through; a ferry issues the
transfers, one after the other. How it sees that one is through is the transport's: gloo tells
only who waits, so a thread does; on CUDA an event behind the transfer is asked whenever the process
comes by, and nothing is issued from another thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch

from dglpipe.pipeline.transport import Slot, Work

Words = tuple[int, int, int]
"""Phase, number and rows, as they stand in the header of a slot."""


class End(Protocol):
    """One end of a link. All but `issue` is called with the lock of the ferry held."""

    def next_slot(self) -> Slot | None:
        """The slot of the next transfer; None: there is none yet."""

    def issue(self, slot: Slot) -> Work:
        """Issues it."""

    def through(self, slot: Slot, words: Words) -> None:
        """Follows a transfer, with the header of its message."""

    @property
    def is_over(self) -> bool:
        """Whether no other transfer will come."""


class ProgressEngine(Protocol):
    """Carries the messages of one end."""

    def start(self, end: End) -> None: ...

    def __enter__(self) -> object:
        """Takes the lock, and sees what has come; raises what has gone wrong."""

    def __exit__(self, *_: object) -> None: ...

    def changed(self) -> None:
        """Something is there for it to do; the lock is held."""

    def wait_for(self, holds: Callable[[], object]) -> None:
        """Returns when `holds()`; raises what has gone wrong; the lock is held."""

    def finish(self) -> None:
        """Returns when the end is over."""


class ThreadProgressEngine:
    """A thread that waits for each transfer.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, name=name, daemon=True)
        self._end: End | None = None

    def start(self, end: End) -> None:
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

    def _run(self, end: End) -> None:
        while True:
            slot: Slot | None = None
            with self._changed:
                while slot is None:
                    if end.is_over:
                        return
                    slot = end.next_slot()
                    if slot is None:
                        self._changed.wait()
            end.issue(slot).wait()
            phase, number, rows = (int(word) for word in slot.header)
            with self._changed:
                end.through(slot, (phase, number, rows))
                self._changed.notify_all()


class EventProgressEngine:
    """Sees by events of a device what is through; nobody waits for the device.

    The header is copied to the host behind the transfer, on a stream of its own, so that reading it
    does not wait for what the stage computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: Any = torch.Stream(device)
        self._device = device
        self._end: End | None = None
        self._under_way: tuple[Slot, Any, torch.Tensor] | None = None

    def start(self, end: End) -> None:
        self._end = end
        self._poll()

    def __enter__(self) -> object:
        self._poll()
        return self

    def __exit__(self, *_: object) -> None:
        """There is no lock."""

    def changed(self) -> None:
        self._poll()

    def wait_for(self, holds: Callable[[], object]) -> None:
        while not holds():
            assert self._under_way is not None, "there is nothing to wait for"
            self._under_way[1].synchronize()
            self._poll()

    def finish(self) -> None:
        assert self._end is not None
        end = self._end
        self.wait_for(lambda: end.is_over)

    def _poll(self) -> None:
        """Sees what is through and issues what is next."""
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
            self._end.through(slot, (phase, number, rows))

    def _issue(self, slot: Slot) -> tuple[Slot, Any, torch.Tensor]:
        assert self._end is not None
        words = torch.empty(3, dtype=torch.int64, pin_memory=self._device.type != "cpu")
        work = self._end.issue(slot)
        event = torch.Event(self._device)
        with self._stream:
            work.wait()  # orders this stream behind the transfer, and no other
            words.copy_(slot.words, non_blocking=True)
            event.record()
        return slot, event, words

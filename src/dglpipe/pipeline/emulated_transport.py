"""Links of a given bandwidth and latency, emulated where a message is sent.

A message leaves behind those before it, within its size over the bandwidth, and arrives a latency
later.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from torch import Tensor

from dglpipe.pipeline.transport import Transport, Work

QUEUED = 64
"""Messages that may be under way on a link."""


class EmulatedLine:
    """What travels one way between two processes.

    Args:
        latency: seconds.
        rate: bytes a second.
    """

    def __init__(self, latency: float, rate: float = float("inf")) -> None:
        self.latency = latency
        self._rate = rate
        self._free = 0.0
        self._error: BaseException | None = None
        self._queue: queue.Queue[_Message] = queue.Queue(QUEUED)
        threading.Thread(target=self._deliver, name="slow link", daemon=True).start()

    def leaves(self, size: int, more: float = 0.0) -> float:
        """When a message of `size` bytes that is sent now, and keeps the line for `more`
        seconds besides, has left."""
        self._free = max(self._free, time.perf_counter()) + size / self._rate + more
        return self._free

    def send(
        self, size: int, issue: Callable[[], Work | None], until_arrival: bool = False
    ) -> Work:
        """Sends `size` bytes by `issue`, which is called when they arrive.

        Args:
            until_arrival: whether to wait for it is to wait until its receiver has it, or until
                it has left.
        """
        left = self.leaves(size)
        message = _Message(left + self.latency, issue)
        self._queue.put(message)
        return _Slow(self, left, message.has_come if until_arrival else None)

    def check(self) -> None:
        """Raises what has gone wrong on the line."""
        if self._error is not None:
            raise self._error

    def _deliver(self) -> None:
        while True:
            message = self._queue.get()
            time.sleep(max(0.0, message.due - time.perf_counter()))
            try:
                work = message.issue()
                if work is not None:
                    work.wait()
            except BaseException as error:
                self._error = error
            message.has_come.set()


class _Message:
    """What is on its way."""

    def __init__(self, due: float, issue: Callable[[], Work | None]) -> None:
        self.due = due
        self.issue = issue
        self.has_come = threading.Event()


class _Slow:
    """A transfer over a slow line."""

    def __init__(self, line: EmulatedLine, left: float, has_come: threading.Event | None) -> None:
        self._line = line
        self._left = left
        self._has_come = has_come

    def wait(self) -> None:
        time.sleep(max(0.0, self._left - time.perf_counter()))
        if self._has_come is not None:
            self._has_come.wait()
        self._line.check()


class EmulatedTransport:
    """The transport of a link, slowed at its sending end.

    Args:
        latency: seconds.
        rate: bytes a second.
        until_arrival: whether a message is under way for its sender until it arrives, or until
            it has left.
    """

    def __init__(
        self, transport: Transport, latency: float, rate: float, until_arrival: bool
    ) -> None:
        self._transport = transport
        self._line = EmulatedLine(latency, rate)
        self._until_arrival = until_arrival

    def isend(self, tensor: Tensor) -> Work:
        own = tensor.clone()
        return self._line.send(own.nbytes, lambda: self._transport.isend(own), self._until_arrival)

    def irecv(self, tensor: Tensor) -> Work:
        return self._transport.irecv(tensor)

    def copy(self, target: Tensor, source: Tensor) -> None:
        self._transport.copy(target, source)

    def fill(self, target: Tensor, value: int) -> None:
        self._transport.fill(target, value)

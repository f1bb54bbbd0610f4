"""Emulation of links with a given bandwidth and latency, at the sending end.

A message leaves after the previous messages, in its size divided by the bandwidth. The message
arrives one latency later.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from torch import Tensor

from dglpipe.pipeline.transport import Transport, Work

QUEUED = 64
"""Maximum number of messages in flight on a link."""


class EmulatedLine:
    """One direction of an emulated link between two processes.

    Args:
        latency: seconds.
        rate: bytes per second.
    """

    def __init__(self, latency: float, rate: float = float("inf")) -> None:
        self.latency = latency
        self._rate = rate
        self._free = 0.0
        self._error: BaseException | None = None
        self._queue: queue.Queue[_Message] = queue.Queue(QUEUED)
        threading.Thread(target=self._deliver, name="emulated link", daemon=True).start()

    def leaves(self, size: int, more: float = 0.0) -> float:
        """Reserves the line for a message.

        Args:
            size: bytes of the message.
            more: seconds that the message occupies the line in addition.

        Returns:
            The time at which the message has left, in seconds of `time.perf_counter`.
        """
        self._free = max(self._free, time.perf_counter()) + size / self._rate + more
        return self._free

    def send(
        self, size: int, issue: Callable[[], Work | None], until_arrival: bool = False
    ) -> Work:
        """Sends a message of `size` bytes.

        Args:
            issue: starts the real transfer; a thread calls `issue` when the message arrives.
            until_arrival: whether `wait()` of the returned work returns after the receiver has
                the message, or after the message has left.
        """
        left = self.leaves(size)
        message = _Message(left + self.latency, issue)
        self._queue.put(message)
        return EmulatedWork(self, left, message.arrived if until_arrival else None)

    def raise_error(self) -> None:
        """Raises the error of the delivering thread, if any."""
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
            message.arrived.set()


class _Message:
    """A message in flight."""

    def __init__(self, due: float, issue: Callable[[], Work | None]) -> None:
        self.due = due
        self.issue = issue
        self.arrived = threading.Event()


class EmulatedWork:
    """A transfer over an emulated line."""

    def __init__(self, line: EmulatedLine, left: float, arrived: threading.Event | None) -> None:
        self._line = line
        self._left = left
        self._arrived = arrived

    def wait(self) -> None:
        time.sleep(max(0.0, self._left - time.perf_counter()))
        if self._arrived is not None:
            self._arrived.wait()
        self._line.raise_error()


class EmulatedTransport:
    """Wraps the transport of a link and delays its sends.

    Args:
        latency: seconds.
        rate: bytes per second.
        until_arrival: whether a send completes when the message arrives, or when the message
            has left.
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

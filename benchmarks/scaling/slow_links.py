"""Links of a given bandwidth and latency, emulated where a message is sent.

A message leaves behind those before it, within its size over the bandwidth, and arrives a latency
later; the sender has its buffer back when it has left.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import schedules

from dglpipe.link import Transport, Work

QUEUED = 64
"""Messages that may be under way on a link."""


class SlowLine:
    """What travels one way between two processes."""

    def __init__(self, latency: float, gbit: float) -> None:
        self._latency = latency
        self._rate = gbit * 1e9 / 8 if gbit else float("inf")
        self._free = 0.0
        self._queue: queue.Queue[tuple[float, Callable[[], Work | None]]] = queue.Queue(QUEUED)
        threading.Thread(target=self._deliver, daemon=True).start()

    def leaves(self, size: int, more: float = 0.0) -> float:
        """When a message of `size` bytes that is sent now, and keeps the line for `more`
        seconds besides, has left."""
        self._free = max(self._free, time.perf_counter()) + size / self._rate + more
        return self._free

    def send(self, size: int, issue: Callable[[], Work | None]) -> Work:
        """Sends `size` bytes by `issue`, which is called when they arrive."""
        due = self.leaves(size)
        self._queue.put((due + self._latency, issue))
        return _Until(due)

    def _deliver(self) -> None:
        while True:
            due, issue = self._queue.get()
            time.sleep(max(0.0, due - time.perf_counter()))
            work = issue()
            if work is not None:
                work.wait()


class _Until:
    def __init__(self, due: float) -> None:
        self._due = due

    def wait(self) -> None:
        time.sleep(max(0.0, self._due - time.perf_counter()))


class SlowTransport:
    """The transport of a link of the chain, slowed."""

    def __init__(self, transport: Transport, latency: float, gbit: float) -> None:
        self._transport = transport
        self._line = SlowLine(latency, gbit)

    def isend(self, tensor: Tensor) -> Work:
        own = tensor.clone()
        return self._line.send(own.nbytes, lambda: self._transport.isend(own))

    def irecv(self, tensor: Tensor) -> Work:
        return self._transport.irecv(tensor)

    def copy(self, target: Tensor, source: Tensor) -> None:
        self._transport.copy(target, source)

    def fill(self, target: Tensor, value: int) -> None:
        self._transport.fill(target, value)


def slow_down(latency: float, gbit: float) -> None:
    """Slows down what `torch.distributed.pipelining` sends in this process, neighbour by
    neighbour and way by way."""
    lines: dict[int, SlowLine] = {}

    def batch(ops: list[dist.P2POp], desc: str | None = None) -> list[Work]:
        del desc
        return [issue(one) for one in ops]

    def issue(one: dist.P2POp) -> Work:
        if one.op is dist.irecv:
            work = dist.irecv(one.tensor, group=one.group, tag=one.tag, group_src=one.group_peer)
            assert work is not None
            return work
        own = one.tensor.detach().clone()
        if one.group_peer not in lines:
            lines[one.group_peer] = SlowLine(latency, gbit)
        return lines[one.group_peer].send(
            own.nbytes,
            lambda: dist.isend(own, group=one.group, tag=one.tag, group_dst=one.group_peer),
        )

    schedules._batch_p2p = batch  # type: ignore[assignment]

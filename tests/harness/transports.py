"""Links in the memory of one process."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue

from torch import Tensor


class MemoryTransport:
    """The transport of both ends of a link.

    A message leaves the slot of the sender when a receive is waited for, or when its send is
    waited for and a receive is posted; never before. A slot that is written too early arrives
    damaged.

    Attributes:
        log: names of the operations, in order.
        sent: buffers of all sends, in order.
        posted: buffers of all receives, in order.
        left: number of messages that have arrived.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.sent: list[Tensor] = []
        self.posted: list[Tensor] = []
        self.left = 0

    def isend(self, tensor: Tensor) -> Transfer:
        self.log.append("send")
        self.sent.append(tensor)
        return Transfer(lambda: self.deliver(min(len(self.sent), len(self.posted))))

    def irecv(self, tensor: Tensor) -> Transfer:
        self.log.append("receive")
        self.posted.append(tensor)
        number = len(self.posted)
        return Transfer(lambda: self.deliver(number))

    def copy(self, target: Tensor, source: Tensor) -> None:
        self.log.append("copy")
        target.copy_(source)

    def fill(self, target: Tensor, value: int) -> None:
        self.log.append("fill")
        target.fill_(value)

    def deliver(self, number: int) -> None:
        """Carries messages up to `number`, in order."""
        while self.left < number:
            source, target = self.sent[self.left], self.posted[self.left]
            assert source.shape == target.shape, "the ends disagree about the size"
            target.copy_(source)
            self.left += 1


class Transfer:
    """A transfer that `wait` completes."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self.wait = wait


class ScriptedTransport:
    """One end of a link without a peer.

    Attributes:
        incoming: what receives get, in order. A receive waits for its message.
        sent: copies of all messages sent, in order.
        under_way: sends that were not waited for.
    """

    def __init__(self) -> None:
        self.incoming: SimpleQueue[Tensor] = SimpleQueue()
        self.sent: list[Tensor] = []
        self.under_way = 0

    def isend(self, tensor: Tensor) -> Transfer:
        self.sent.append(tensor.clone())
        self.under_way += 1
        return Transfer(self._end)

    def irecv(self, tensor: Tensor) -> Transfer:
        return Transfer(lambda: tensor.copy_(self.incoming.get()))

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def fill(self, target: Tensor, value: int) -> None:
        target.fill_(value)

    def _end(self) -> None:
        self.under_way -= 1

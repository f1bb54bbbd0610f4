"""A model of CUDA streams and of NCCL's pairing, for the real code of `link.py`.

The host issues operations and does not wait. A stream runs its operations in order; an
operation may also wait for events, that is for operations of other streams.

    host j        issues ->  forward 1, write slot, send 1, backward 1, wait for send 1 ...
    compute j                forward 1 | fill, copy | backward 1      | wait | fill, copy
    NCCL, link j                             (event) transfer 1 .......(event)

As in ProcessGroupNCCL, `isend` and `irecv` record an event on the compute stream. The stream of the
group starts the transfer after this event. `wait()` blocks the compute stream, not the host. Send n
of a group matches receive n, and neither side continues without the other. A transfer takes time:
from its start to its end, the buffer of the receiver holds garbage.

A random scheduler selects among all operations that may run. Memory is real, so a race gives wrong
values.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from torch import Tensor

GARBAGE = 0xA5


class Operation:
    """One operation; it may run when all operations in `after` are done."""

    __slots__ = ("after", "done", "run")

    def __init__(self, run: Callable[[], object] | None, after: Sequence[Operation] = ()) -> None:
        self.run = run
        self.after = after
        self.done = False


class Actor(Protocol):
    """An object that the scheduler can select to run its next operation."""

    def ready(self) -> bool: ...

    def advance(self) -> None: ...

    def unfinished(self) -> str:
        """Description of the remaining work; empty if the actor is done."""


class Stream:
    """The compute stream of one process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._queue: deque[Operation] = deque()
        self.last = Operation(None)
        self.last.done = True

    def issue(self, run: Callable[[], object] | None, after: Sequence[Operation] = ()) -> Operation:
        """Appends an operation as `last`; an event recorded now waits for this operation."""
        self.last = Operation(run, after)
        self._queue.append(self.last)
        return self.last

    def ready(self) -> bool:
        if not self._queue:
            return False
        after = self._queue[0].after
        return not after or all(event.done for event in after)

    def advance(self) -> None:
        operation = self._queue.popleft()
        if operation.run is not None:
            operation.run()
        operation.done = True

    def unfinished(self) -> str:
        return f"{self.name}: {len(self._queue)} operations" if self._queue else ""


class Post:
    """One side of a transfer."""

    def __init__(self, tensor: Tensor, event: Operation) -> None:
        self.tensor = tensor
        self.event = event
        self.end = Operation(None)


class PairGroup:
    """The two NCCL streams of one group; every step takes both."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sends: deque[Post] = deque()
        self.receives: deque[Post] = deque()
        self._under_way = False

    def ready(self) -> bool:
        return (
            bool(self.sends and self.receives)
            and self.sends[0].event.done
            and self.receives[0].event.done
        )

    def advance(self) -> None:
        if not self._under_way:
            self.receives[0].tensor.fill_(GARBAGE)
            self._under_way = True
            return
        send, receive = self.sends.popleft(), self.receives.popleft()
        # Like NCCL, the model does not compare sizes: a message that is too long is cut off.
        size = min(send.tensor.numel(), receive.tensor.numel())
        receive.tensor[:size].copy_(send.tensor[:size])
        send.end.done = receive.end.done = True
        self._under_way = False

    def unfinished(self) -> str:
        if not self.sends and not self.receives:
            return ""
        return f"{self.name}: {len(self.sends)} sends, {len(self.receives)} receives"


class ModelWork:
    """The result of `isend` and `irecv`."""

    def __init__(self, compute: Stream, post: Post) -> None:
        self._compute = compute
        self._post = post

    def wait(self) -> None:
        self._compute.issue(None, [self._post.end])


class ModelTransport:
    """The `Transport` of one end of a link."""

    def __init__(self, compute: Stream, group: PairGroup) -> None:
        self.compute = compute
        self.group = group
        self.on_write: Callable[[], object] = lambda: None
        """Called when the first part of a message is written into the slot of the sender."""
        self.ends: list[Operation] = []
        """Operations of the received messages: done when the message has arrived."""
        self._writing = False

    def isend(self, tensor: Tensor) -> ModelWork:
        self._writing = False
        return ModelWork(self.compute, self._post(self.group.sends, tensor))

    def irecv(self, tensor: Tensor) -> ModelWork:
        post = self._post(self.group.receives, tensor)
        self.ends.append(post.end)
        return ModelWork(self.compute, post)

    def copy(self, target: Tensor, source: Tensor) -> None:
        self._write(lambda: target.copy_(source))

    def fill(self, target: Tensor, value: int) -> None:
        self._write(lambda: target.fill_(value))

    def _post(self, queue: deque[Post], tensor: Tensor) -> Post:
        post = Post(tensor, self.event())
        queue.append(post)
        return post

    def event(self) -> Operation:
        """The event after which a transfer issued now starts."""
        return self.compute.last

    def _write(self, run: Callable[[], object]) -> None:
        if not self._writing:
            self._writing = True
            self.compute.issue(self.on_write)
        self.compute.issue(run)


class Host:
    """The Python program of one process.

    The program yields wherever other actors may run. If it yields an operation, it waits for this
    operation, as `.tolist()` does.
    """

    def __init__(self, name: str, program: Generator[Operation | None]) -> None:
        self._name = name
        self._program: Generator[Operation | None] | None = program
        self._waits_for: Operation | None = None

    def ready(self) -> bool:
        waits = self._waits_for is not None and not self._waits_for.done
        return self._program is not None and not waits

    def advance(self) -> None:
        assert self._program is not None
        try:
            self._waits_for = next(self._program)
        except StopIteration:
            self._program = None

    def unfinished(self) -> str:
        return f"{self._name} waits" if self._program is not None else ""


def run(actors: Sequence[Actor], rng: random.Random) -> list[str]:
    """Runs `actors` in a random order until none can run.

    Each actor has a fixed random speed in a schedule, so that in some schedules one actor hardly
    runs until all others are done. An actor may run several operations in a row; the typical number
    depends on the schedule.

    Returns:
        Descriptions of the remaining work; empty without a deadlock.
    """
    speeds = {id(actor): 10.0 ** rng.uniform(-3, 0) for actor in actors}
    burst = rng.uniform(0, 0.95)
    while ready := [actor for actor in actors if actor.ready()]:
        actor = rng.choices(ready, [speeds[id(actor)] for actor in ready])[0]
        actor.advance()
        while rng.random() < burst and actor.ready():
            actor.advance()
    return [left for actor in actors if (left := actor.unfinished())]

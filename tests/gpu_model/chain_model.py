"""A chain of processes on modelled streams: real Sender and Receiver, modelled stages.

A stage adds 1 to its input. Its forward, and after the send its backward, read the receive slot and
check every value.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass
from itertools import islice

import torch
from streams import Actor, Host, ModelTransport, Operation, PairGroup, Stream, run
from torch import Tensor

from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.errors import LinkError
from dglpipe.pipeline.link import Receiver, Sender
from dglpipe.pipeline.message import ACTIVATIONS, ENSEMBLE, LABELS, MessageFormat, contiguous_field
from harness.schedules import batch_schedule

CPU = torch.device("cpu")
PLAN = batch_schedule(train=11)
"""Twice: train batches of 4, 4, 3 rows, then test batches of 3, 2 in another layout."""

_LABELS = contiguous_field(LABELS, torch.int64, ())
_ENSEMBLE = contiguous_field(ENSEMBLE, torch.float32, (2,))
_ACTIVATIONS = contiguous_field(ACTIVATIONS, torch.float32, (3,))
LAYOUTS = {
    Phase.TRAIN: MessageFormat(PLAN.largest_rows(Phase.TRAIN), (_LABELS, _ACTIVATIONS)),
    Phase.TEST: MessageFormat(PLAN.largest_rows(Phase.TEST), (_LABELS, _ENSEMBLE, _ACTIVATIONS)),
}


@dataclass(frozen=True)
class Parts:
    """The parts of a chain; mutants replace some."""

    sender: type[Sender] = Sender
    receiver: type[Receiver] = Receiver
    transport: type[ModelTransport] = ModelTransport


@dataclass(frozen=True)
class Outcome:
    """The result of one schedule."""

    wrong: set[str]
    """`forward`, `backward`: read a wrong value; `header`: received an unexpected message."""
    undone: list[str]
    """Operations that never ran, because of a deadlock."""
    in_flight: int
    """Maximum number of messages of a link that were sent and not yet received."""

    def problems(self, depth: int) -> set[str]:
        """Descriptions of all faults; empty for a correct schedule."""
        problems = set(self.wrong)
        if self.undone:
            problems.add("deadlock")
        if self.in_flight > depth:
            problems.add("bound")
        return problems


class Batches:
    """Batches with different values in every batch and schedule, so that old values in memory are
    detected."""

    def __init__(self, salt: int) -> None:
        self._salt = salt
        self._batches: dict[BatchItem, dict[str, Tensor]] = {}

    def at(self, item: BatchItem, stage: int) -> dict[str, Tensor]:
        """The values that `stage` has to read."""
        if item not in self._batches:
            self._batches[item] = self._make(item)
        batch = self._batches[item]
        return {**batch, ACTIVATIONS: batch[ACTIVATIONS] + stage}

    def _make(self, item: BatchItem) -> dict[str, Tensor]:
        code = self._salt + 100 * (2 * item.number + item.phase)
        labels = torch.arange(code, code + item.rows)
        batch = {LABELS: labels, ACTIVATIONS: torch.stack((labels, -labels, labels), 1).float()}
        if item.phase is Phase.TEST:
            batch[ENSEMBLE] = torch.stack((labels, -labels), 1).float()
        return batch


class Link:
    """One link with its counts of sent and received messages.

    A message counts as sent when its first part is in the slot of the sender, and as received when
    it has arrived at a receiver whose stream waits for it.
    """

    def __init__(self, name: str) -> None:
        self.group = PairGroup(name)
        self.in_flight = 0
        """Maximum number of messages that were sent and not yet received."""
        self._upper: ModelTransport | None = None
        self._asked: list[Operation] = []
        self._sent = self._taken = 0

    def sender_end(self, parts: Parts, compute: Stream) -> ModelTransport:
        """The transport of the process below."""
        transport = parts.transport(compute, self.group)
        transport.on_write = self._note_sent
        return transport

    def receiver_end(self, parts: Parts, compute: Stream) -> ModelTransport:
        """The transport of the process above."""
        self._upper = parts.transport(compute, self.group)
        return self._upper

    def ask(self) -> None:
        """Records an event after the earlier work of the receiver, before it takes a message."""
        assert self._upper is not None
        self._asked.append(self._upper.compute.issue(None))

    def _note_sent(self) -> None:
        assert self._upper is not None
        self._sent += 1
        taken = zip(self._asked, self._upper.ends, strict=False)
        for asked, end in islice(taken, self._taken, None):
            if not (asked.done and end.done):
                break
            self._taken += 1
        self.in_flight = max(self.in_flight, self._sent - self._taken)


class Process:
    """One process: a compute stream and the host program that issues to it."""

    def __init__(
        self,
        j: int,
        below: Link | None,
        above: Link | None,
        depth: int,
        batches: Batches,
        parts: Parts,
    ) -> None:
        self.wrong: set[str] = set()
        self._j = j
        self._batches = batches
        self._below = below
        self.compute = Stream(f"compute {j}")
        self._sender = self._receiver = None
        if above is not None:
            self._sender = parts.sender(above.sender_end(parts, self.compute), LAYOUTS, CPU)
        if below is not None:
            end = below.receiver_end(parts, self.compute)
            name = f"link {j - 1} -> {j}"
            self._receiver = parts.receiver(end, LAYOUTS, PLAN.items(), depth, CPU, name)

    def program(self) -> Generator[Operation | None]:
        """The loop of a process: runs every item through the stage, and sometimes logs."""
        for item in PLAN.items():
            batch = self._take(item)
            yield None
            self._step(item, batch)
            yield None
            if self._receiver is not None and item.ends_pass:
                yield self.compute.last
                self._check(self._receiver)
        if self._sender is not None:
            self._sender.wait()

    def _take(self, item: BatchItem) -> dict[str, Tensor]:
        if self._receiver is None or self._below is None:
            return self._batches.at(item, 0)
        self._below.ask()
        return self._receiver.take()[1]

    def _step(self, item: BatchItem, batch: dict[str, Tensor]) -> None:
        expected = self._batches.at(item, self._j)
        output = torch.empty(item.rows, 3)
        self.compute.issue(lambda: self._read("forward", batch, expected))
        self.compute.issue(lambda: torch.add(batch[ACTIVATIONS], 1, out=output))
        # Only for a mutant, which frees the slot before the backward is issued.
        getattr(self._receiver, "after_forward", lambda: None)()
        if self._sender is not None:
            if item.phase is Phase.TRAIN:
                self._sender.wait()
            self._sender.send(item, {**batch, ACTIVATIONS: output})
        if item.phase is Phase.TRAIN:
            self.compute.issue(lambda: self._read("backward", batch, expected))

    def _read(self, who: str, batch: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        if not all(torch.equal(batch[name], value) for name, value in expected.items()):
            self.wrong.add(who)

    def _check(self, receiver: Receiver) -> None:
        try:
            receiver.check()
        except LinkError:
            self.wrong.add("header")


def run_schedule(seed: int, processes: int, depth: int, parts: Parts | None = None) -> Outcome:
    """One random schedule of a whole run of the chain."""
    parts = parts or Parts()
    links = [Link(f"link {j}") for j in range(processes - 1)]
    batches = Batches(10_000 * (seed + 1))
    sides = zip([None, *links], [*links, None], strict=True)
    chain = [
        Process(j, below, above, depth, batches, parts) for j, (below, above) in enumerate(sides)
    ]
    actors: list[Actor] = [Host(f"host {j}", one.program()) for j, one in enumerate(chain)]
    actors += [one.compute for one in chain]
    actors += [link.group for link in links]
    undone = run(actors, random.Random(seed))
    wrong = set().union(*(one.wrong for one in chain))
    return Outcome(wrong, undone, max(link.in_flight for link in links))

"""Messages in both directions of a link: right values and no deadlock in any schedule.

The steps follow `methods/two_way.py`. Each direction has a group of its own. In a common
queue two processes may wait for each other, which the model shows.
"""

from __future__ import annotations

import random
from collections import deque

import pytest
import torch
from chain_model import CPU, LAYOUTS, PLAN, Batches
from streams import GARBAGE, Host, ModelTransport, PairGroup, Post, Stream, run

from dglpipe.data.batch_schedule import Phase
from dglpipe.errors import LinkError
from dglpipe.pipeline.link import Receiver, Sender
from dglpipe.pipeline.message import ACTIVATIONS, Direction, MessageFormat, contiguous_field
from harness.configs import in_test_all

SCHEDULES = 15
GRADIENT = contiguous_field("gradient", torch.float32, (3,), Direction.DOWN, [Phase.TRAIN])
DOWN = {Phase.TRAIN: MessageFormat(PLAN.largest_rows(Phase.TRAIN), (GRADIENT,))}
ITEMS = {item.number: item for item in PLAN.items() if item.phase is Phase.TRAIN}
"""Six training batches; the third of an epoch has fewer rows."""


class CommonQueue:
    """One communicator for both directions: each end issues its sends and receives in one order."""

    def __init__(self, name):
        self.name = name
        self.queues = deque(), deque()
        self._under_way = False

    def ready(self):
        if not all(self.queues):
            return False
        (a, is_send), (b, other_is_send) = (queue[0] for queue in self.queues)
        return is_send != other_is_send and a.event.done and b.event.done

    def advance(self):
        (a, is_send), (b, _) = (queue[0] for queue in self.queues)
        send, receive = (a, b) if is_send else (b, a)
        if not self._under_way:
            receive.tensor.fill_(GARBAGE)
            self._under_way = True
            return
        for queue in self.queues:
            queue.popleft()
        size = min(send.tensor.numel(), receive.tensor.numel())
        receive.tensor[:size].copy_(send.tensor[:size])
        send.end.done = receive.end.done = True
        self._under_way = False

    def unfinished(self):
        return f"{self.name}: {list(map(len, self.queues))}" if any(self.queues) else ""


class CommonTransport(ModelTransport):
    """One end of a `CommonQueue`.

    Args:
        place: 0 for the process below, 1 for the process above.
    """

    def __init__(self, compute, group, place):
        super().__init__(compute, group)
        self.group.sends, self.group.receives = [], []  # `_post` compares them
        self._place = place

    def _post(self, queue, tensor):
        post = Post(tensor, self.event())
        self.group.queues[self._place].append((post, queue is self.group.sends))
        return post


class Process:
    """The host program of one process of one stage.

    Args:
        delays: for every stage but the last, as `Method.delay`.
        sends_late: whether a message about a batch is sent when the message from above about it has
            come down, as in delayed gradients; otherwise in the step of the batch.
    """

    def __init__(self, j, ends, depth, delays, sends_late, batches):
        self.j, self.delays, self.sends_late, self.batches = j, delays, sends_late, batches
        self.compute, self.wrong, self.late = Stream(f"compute {j}"), set(), len(ITEMS)
        below, above = ends(self.compute)
        self.receiver = self.to_below = self.sender = self.from_above = None
        if below is not None:
            up, down = below
            self.receiver = Receiver(up, LAYOUTS, PLAN.items(), depth, CPU, f"up {j}")
            self.to_below = Sender(down, DOWN, CPU)
        if above is not None:
            up, down = above
            self.sender = Sender(up, LAYOUTS, CPU)
            coming = (ITEMS[n] for n in range(1, len(ITEMS) - delays[j] + 1))
            self.from_above = Receiver(down, DOWN, coming, delays[j] + 1, CPU, f"down {j}")

    def program(self):
        for item in PLAN.items():
            batch = self.batches.at(item, 0)
            if self.receiver is not None:
                batch = self.receiver.take()[1]
            yield None
            self.read("up", batch, self.batches.at(item, self.j))
            output = self.run_forward(batch[ACTIVATIONS])
            if self.sender is not None:
                self.sender.wait()
                self.sender.send(item, {**batch, ACTIVATIONS: output})
            yield None
            if item.phase is Phase.TRAIN:
                yield from self.descend(item.number)
            if item.ends_pass:
                yield self.compute.last
                self.check()
        for end in (self.sender, self.to_below):
            if end is not None:
                end.wait()

    def run_forward(self, batch):
        output = torch.empty_like(batch)
        self.compute.issue(lambda: torch.add(batch, 1, out=output))
        return output

    def descend(self, number):
        if not self.sends_late:
            self.send_down(number)
        used = number - self.delays.get(self.j, 0)
        if self.from_above is not None and used >= 1:
            item, parts = self.from_above.take()
            assert item.number == used
            yield None
            self.read("down", parts, {"gradient": self.gradient(used, self.j)})
        if self.sends_late and used >= 1:
            self.send_down(used)

    def send_down(self, number):
        if self.to_below is None or number + self.delays[self.j - 1] > len(ITEMS):
            return
        made = torch.empty(ITEMS[number].rows, 3)
        self.compute.issue(lambda: made.copy_(self.gradient(number, self.j - 1)))
        self.to_below.wait()
        self.to_below.send(ITEMS[number], {"gradient": made})

    def gradient(self, number, j):
        """What comes down to stage j about a batch."""
        return torch.full((ITEMS[number].rows, 3), 10.0 * number + j)

    def read(self, who, parts, expected):
        def compare():
            if not all(torch.equal(parts[name], value) for name, value in expected.items()):
                self.wrong.add(who)

        self.compute.issue(compare)

    def check(self):
        try:
            for end in (self.receiver, self.from_above):
                if end is not None:
                    end.check()
        except LinkError:
            self.wrong.add("header")


def problems(seed, processes, depth, delays, sends_late, is_common=False):
    """What goes wrong in one random schedule."""
    if is_common:
        links = [CommonQueue(f"link {j}") for j in range(processes - 1)]
    else:
        links = [(PairGroup(f"up {j}"), PairGroup(f"down {j}")) for j in range(processes - 1)]

    def side(compute, link, place):
        if link is None:
            return None
        if is_common:
            transport = CommonTransport(compute, link, place)
            return transport, transport
        return tuple(ModelTransport(compute, group) for group in link)

    chain = []
    for j, (below, above) in enumerate(zip([None, *links], [*links, None], strict=True)):

        def ends(compute, below=below, above=above):
            return side(compute, below, 1), side(compute, above, 0)

        batches = Batches(10_000 * (seed + 1))
        chain.append(Process(j, ends, depth, delays, sends_late, batches))
    groups = links if is_common else [group for link in links for group in link]
    actors = [Host(f"host {one.j}", one.program()) for one in chain]
    actors += [*(one.compute for one in chain), *groups]
    undone = run(actors, random.Random(seed))
    return set().union(*(one.wrong for one in chain)) | ({"deadlock"} if undone else set())


def even(processes, delay):
    return dict.fromkeys(range(processes - 1), delay)


def falling(processes):
    return {j: processes - 1 - j for j in range(processes - 1)}


CHAINS = [
    *((2, 1, even(2, 0), False), (3, 1, even(3, 1), False), (3, 2, falling(3), True)),
    *(in_test_all(*one) for one in ((4, 1, even(4, 0), False), (4, 2, even(4, 3), False))),
    *(in_test_all(*one) for one in ((4, 1, falling(4), True), (4, 3, falling(4), True))),
]


@pytest.mark.parametrize(("processes", "depth", "delays", "sends_late"), CHAINS)
def test_every_schedule_is_right(processes, depth, delays, sends_late):
    for seed in range(SCHEDULES):
        assert not problems(seed, processes, depth, delays, sends_late), f"schedule {seed}"


@pytest.mark.parametrize(
    ("processes", "depth", "delays", "sends_late"),
    [(3, 2, even(3, 2), False), (3, 2, falling(3), True)],
)
def test_a_common_queue_for_both_directions_deadlocks(processes, depth, delays, sends_late):
    found = set()
    for seed in range(SCHEDULES):
        found |= problems(seed, processes, depth, delays, sends_late, is_common=True)
    assert "deadlock" in found

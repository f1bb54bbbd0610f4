"""Links over real processes: bounded, uneven, checked."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

import pytest
import torch

from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.errors import LinkError, PeerLostError
from dglpipe.pipeline.link import Receiver, Sender
from dglpipe.pipeline.message import ACTIVATIONS, LABELS, MessageFormat, contiguous_field
from harness.configs import layout, make_config
from harness.training import make_trainer, run_planned
from harness.worlds import WorldError, run_world

CPU = torch.device("cpu")
PATIENCE_S = 20


def layouts(rows, numbers):
    """Messages of `rows` labels and `rows` x `numbers` float32."""
    fields = (
        contiguous_field(LABELS, torch.int64, ()),
        contiguous_field(ACTIVATIONS, torch.float32, (numbers,)),
    )
    return {phase: MessageFormat(rows, fields) for phase in Phase}


def item(index, rows, phase=Phase.TRAIN):
    return BatchItem(phase, index, 1, index, 0, rows, rows, False, 0, 1, index)


def content(index, rows, numbers):
    """The content of message `index`."""
    labels = torch.arange(rows) + 1000 * index
    return {LABELS: labels, ACTIVATIONS: labels[:, None].float().expand(rows, numbers)}


def send_all(group, items, numbers=8, rows=4):
    """Sends messages as fast as the link takes them, counting them in the store."""
    sender = Sender(group.following, layouts(rows, numbers), CPU)
    for one in items:
        sender.send(one, content(one.number, one.rows, numbers))
        group.store.add("sent", 1)
    sender.wait()


def receiver(group, items, depth=2, numbers=8, rows=4):
    return Receiver(group.previous, layouts(rows, numbers), iter(items), depth, CPU, "link 0 -> 1")


# ---------------------------------------------------------------- back-pressure


def slow_receiver(group, depth, count):
    """Rank 1 takes a message only when no more can be in flight; returns the counts."""
    items = [item(index, 4) for index in range(1, count + 1)]
    if group.topology.rank == 0:
        return send_all(group, items)
    link, most = receiver(group, items, depth), []
    for taken in range(count):
        expected = min(taken + depth, count)
        deadline = time.monotonic() + PATIENCE_S
        while group.store.add("sent", 0) < expected and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.02)  # long enough for a sender without a limit to send all other messages
        most.append(group.store.add("sent", 0) - taken)
        _, parts = link.take()
        assert parts[LABELS].tolist() == content(taken + 1, 4, 8)[LABELS].tolist()
    return most


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_messages_sent_and_not_yet_taken_are_d(depth):
    """Exactly D, as long as messages are left."""
    count = 8
    _, under_way = run_world(layout(2), slow_receiver, depth, count)
    assert under_way == [min(depth, count - taken) for taken in range(count)]


# ---------------------------------------------------------------- content


def uneven(group, sizes):
    items = [item(index, rows) for index, rows in enumerate(sizes, 1)]
    if group.topology.rank == 0:
        return send_all(group, items)
    link, compared = receiver(group, items), 0
    for one in items:
        came, parts = link.take()
        expected = content(one.number, one.rows, 8)
        assert came == one
        assert all(torch.equal(parts[name], expected[name]) for name in expected)
        compared += parts[ACTIVATIONS].numel()
    link.check()
    return compared


def test_batches_of_fewer_rows_are_prefixes():
    sizes = [4, 1, 3, 4, 2, 1]
    _, compared = run_world(layout(2), uneven, sizes)
    assert compared == 8 * sum(sizes)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def many(group, count, numbers):
    items = [item(index, 4) for index in range(1, count + 1)]
    if group.topology.rank == 0:
        send_all(group, items[:50], numbers)
        before = resident_bytes()
        send_all(group, items[50:], numbers)
    else:
        link = receiver(group, items, numbers=numbers)
        for _ in range(50):
            link.take()
        before = resident_bytes()
        for _ in range(count - 50):
            link.take()
        link.check()
    return resident_bytes() - before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow():
    numbers = 16_384  # 256 KiB a message, 100 MiB in all
    growth = run_world(layout(2), many, 400, numbers)
    assert max(growth) < 16 * 2**20


# ---------------------------------------------------------------- wrong messages


def wrong_plan(group, sent, expected):
    if group.topology.rank == 0:
        return send_all(group, [item(*one) for one in sent])
    link = receiver(group, [item(*one) for one in expected])
    for _ in expected:
        link.take()
    with pytest.raises(LinkError) as caught:
        link.check()
    return str(caught.value)


@pytest.mark.parametrize(
    ("sent", "expected", "got", "wanted"),
    [
        ((7, 4), (2, 4), "train batch 7 of 4 rows", "train batch 2 of 4 rows"),
        ((2, 3), (2, 4), "train batch 2 of 3 rows", "train batch 2 of 4 rows"),
        ((2, 4, Phase.TEST), (2, 4), "test batch 2 of 4 rows", "train batch 2 of 4 rows"),
    ],
)
def test_an_unexpected_message_is_named(sent, expected, got, wanted):
    right = (1, 4)
    _, text = run_world(layout(2), wrong_plan, [right, sent], [right, expected])
    assert "link 0 -> 1" in text
    assert f"the receiver expected {wanted}" in text
    assert f"the sender sent {got}" in text


class Liar:
    """A transport that gives one message a wrong number."""

    def __init__(self, inner, wrong):
        self.inner, self.wrong = inner, wrong
        self.isend, self.irecv, self.copy = inner.isend, inner.irecv, inner.copy

    def fill(self, target, value):
        self.inner.fill(target, value + 100 if value == self.wrong else value)


def train_with_liar(group, plan, run_dir):
    if group.topology.rank == 0:
        group.following = Liar(group.following, wrong=6)
    trainer = make_trainer(group, plan, run_dir)
    try:
        trainer.run()
    finally:
        trainer.checkpoints.drain()


def test_a_worker_notices_before_the_next_checkpoint_is_complete(run_dir):
    """Checkpoints at steps 3 and 6; the header of the message of step 6 is wrong."""
    config = make_config("checkpoint.every=3", "checkpoint.keep=9", "log_every=100")
    with pytest.raises(WorldError) as caught:
        run_planned(layout(2), train_with_liar, config, run_dir)
    first = caught.value.failures[0]
    assert first.kind == "LinkError"
    assert "link 0 -> 1: the receiver expected train batch 6 of 400 rows" in first.message
    assert "the sender sent train batch 106 of 400 rows" in first.message
    files = sorted(path.relative_to(run_dir) for path in run_dir.glob("checkpoints/*/stage_1.*"))
    assert files == [Path("checkpoints/step_00000003/stage_1.safetensors")]


# ---------------------------------------------------------------- lost neighbours


def leave_early(group, leaver):
    items = [item(index, 4) for index in range(1, 100)]
    if group.topology.rank == leaver:
        items = list(islice(items, 5))
    if group.topology.rank == 0:
        send_all(group, items)
    else:
        link = receiver(group, items)
        for _ in items:
            link.take()
    if group.topology.rank == leaver:
        raise ZeroDivisionError("the cause")


@pytest.mark.parametrize("leaver", [0, 1])
def test_the_loss_of_a_neighbour_raises_peer_lost_error(leaver):
    with pytest.raises(WorldError) as caught:
        run_world(layout(2), leave_early, leaver)
    first, second = caught.value.failures
    assert (first.rank, first.kind) == (leaver, "ZeroDivisionError")
    assert (second.rank, second.kind) == (1 - leaver, PeerLostError.__name__)
    assert second.message.startswith(f"lost rank {leaver} (stage {leaver})")


def replica_dies(group, plan):
    trainer = make_trainer(group, plan)
    train = trainer.runner.train

    def train_or_fail(arrival):
        if group.topology.rank == 2 and arrival.item.step == 3:
            raise ZeroDivisionError("the cause")
        train(arrival)

    trainer.runner.train = train_or_fail
    trainer.run()


def test_the_loss_of_a_replica_raises_peer_lost_error():
    """Rank 2 is stage 0 of replica 1: stage 1 misses its messages, replica 0 its gradients."""
    with pytest.raises(WorldError) as caught:
        run_planned(layout(2, 2, 2), replica_dies, make_config("pipeline.replicas=2"))
    first, *others = caught.value.failures
    assert (first.rank, first.kind) == (2, "ZeroDivisionError")
    assert {other.rank for other in others} == {0, 1, 3}
    assert [other.kind for other in others] == ["PeerLostError"] * 3, caught.value

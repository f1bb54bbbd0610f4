"""Asynchronous learning for real: every stage in its own process, at its own pace.

A stage learns from what its buffer holds when it comes by. It waits only where nothing may be
read, or for the transfer before. Evaluations travel with the batches: a stage takes part in one
when its first test batch has come, with the weights that it has then.
"""

from __future__ import annotations

import itertools
import time
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from dglpipe.config import SPARE
from dglpipe.data import DataSource
from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.errors import LinkError
from dglpipe.methods.dgl import Chain
from dglpipe.methods.dgl_async.base import PacedChain, PacedWorker
from dglpipe.methods.dgl_async.progress_engine import (
    EventProgressEngine,
    ProgressEngine,
    ThreadProgressEngine,
)
from dglpipe.methods.dgl_async.receiver import AsyncReceiver, Buffer
from dglpipe.methods.dgl_async.replay import InOrder, Replay
from dglpipe.methods.dgl_async.sender import AsyncSender
from dglpipe.methods.dgl_async.staleness import ages, summarize
from dglpipe.methods.dgl_async.storage import Batch, StorageFormat
from dglpipe.monitoring.timers import Kind
from dglpipe.pipeline.inputs import Arrival, DataFeed, Feed
from dglpipe.pipeline.message import ACTIVATIONS, ENSEMBLE, LABELS
from dglpipe.pipeline.stage import Stage
from dglpipe.pipeline.transport import Header


class InboxFeed:
    """Feeds a stage with test batches; those of training it reads from its inbox.

    Args:
        items: of the test batches, in order.
    """

    def __init__(self, inbox: AsyncReceiver, items: Iterator[BatchItem]) -> None:
        self._inbox = inbox
        self._items = items

    def take(self) -> Arrival:
        item = next(self._items)
        parts = self._inbox.test(item)
        return Arrival(item, parts[ACTIVATIONS], parts[LABELS], parts.get(ENSEMBLE))

    def check(self) -> None:
        """Every message is looked at when it comes."""

    def close(self) -> None:
        self._inbox.close()


class AsyncWorker(PacedWorker):
    """The process of one stage."""

    _outbox: AsyncSender | None = None
    _inbox: AsyncReceiver | None = None

    def _chain(self, stages: list[Stage]) -> Chain:
        (stage,) = stages
        j, device = stage.index, self._device.torch_device
        self._fields = dict(enumerate(self._spec.fields))
        self._outputs = self._waits = 0
        # When each output was made, and when each batch was read: times of this machine.
        self._made, self._read = array("q"), array("q")
        self._has_told = False
        if self._group.following is not None:
            drops = self._method.policy_of(j) == "overwrite"
            self._outbox = AsyncSender(
                self._group.following,
                self._layouts(j),
                device,
                self._method.sends(j, self.config.pipeline.depth),
                drops,
                self._ferry(f"to stage {j + 1}"),
            )
        count, own = self.topology.layout.stages, self._set_out(stages)
        return PacedChain(stages, self._fields, self._outbox, self._timer, count, own)

    def _ferry(self, name: str) -> ProgressEngine:
        if self._device.is_cuda:
            return EventProgressEngine(self._device.torch_device)
        return ThreadProgressEngine(name)

    def _ordered(self) -> Iterator[BatchItem]:
        """Of stage 0: all batches, and more of them while other stages are not done; then the last
        evaluation. Of others: the test batches, for the batches of training come as they may."""
        if self._group.previous is not None:
            steps = (*range(self.done, self.plan.steps), self.plan.steps)
            yield from itertools.chain.from_iterable(map(self.plan.tests_after, steps))
            return
        if self.done < self.plan.steps:
            yield from self.plan.tests_after(self.done)
        for number in itertools.count(self.done + 1):
            if number > self.plan.steps and self._all_done():
                yield from self.plan.tests_after(self.plan.steps)
                return
            yield self.plan.fed(number)
            if number < self.plan.steps:
                yield from self.plan.tests_after(number)

    def _all_done(self) -> bool:
        ranks = range(self.topology.layout.world_size)
        return self._group.store.check([_done(rank) for rank in ranks])

    def _open_feed(self, source: DataSource, items: Iterator[BatchItem]) -> Feed:
        if self._group.previous is None:
            size = source.info.train
            return DataFeed(source.load(), size, items, self.config.seed, self._device)
        below = self._first - 1
        method, depth = self._method, self.config.pipeline.depth
        keeping = StorageFormat(method, self._device, self._fields[below].dtype)
        slots = depth
        self._replay: Buffer = InOrder()
        if method.policy_of(below) == "overwrite":
            self._replay = Replay(method.buffer, method.read_rule, method.max_reuse, method.max_age)
            slots = SPARE + (0 if keeping.changes else method.buffer)
        layouts = self._layouts(below)
        self._inbox = AsyncReceiver(
            self._group.previous,
            layouts,
            self._device.torch_device,
            self._replay,
            slots,
            keeping,
            self.plan.last_test,
            f"link {below} -> {self._first}",
            self._ferry(f"from stage {below}"),
        )
        return InboxFeed(self._inbox, items)

    def _run(self) -> None:
        self._begin()
        self._say_when_done()
        if self._inbox is None:
            self._feed_others()
        else:
            self._follow(self._inbox)
        if self._outbox is not None:
            self._outbox.close()
            self._group.store.set(_made(self._first), b64encode(self._made.tobytes()).decode())

    def _feed_others(self) -> None:
        """The loop of stage 0."""
        for item in self._order:
            if item.phase is Phase.TEST:
                self._evaluate(item)
                continue
            self._timer.lap(self._first, Kind.OTHER)
            arrival = self._feed.take()
            self._timer.lap(self._first, Kind.LOADING)
            self._turn(Batch(arrival.batch, arrival.labels))

    def _follow(self, inbox: AsyncReceiver) -> None:
        """The loop of another stage."""
        pace, since = self._paces[0], time.monotonic()
        for item in self._order:
            # Between two evaluations, and not inside one.
            while self._testing is False and not inbox.has_test:
                self._timer.lap(self._first, Kind.OTHER)
                # Behind a link that blocks, what is not taken would hold up the stage below.
                idle = pace.is_done and self._outbox is None and self._replay.keeps
                if self._bounds_age:
                    inbox.know_of(self._group.store.add(_outputs(self._first - 1), 0))
                batch = None if idle else inbox.read(learns=not pace.is_done)
                if batch is None:
                    self._waits += not pace.is_done
                    if not self._replay.usage.written:  # the stage below has not begun
                        since = time.monotonic()
                    self._refuse_to_starve(since)
                    inbox.wait()
                    self._timer.lap(self._first, Kind.WAIT_INPUT)
                else:
                    if not pace.is_done:
                        self._read.append(time.time_ns())
                    self._turn(batch)
                    since = time.monotonic()
            self._evaluate(item)
            since = time.monotonic()  # an evaluation may take its time

    def _refuse_to_starve(self, since: float) -> None:
        """Raises LinkError if nothing young enough has come for too long."""
        limit, done = self.config.timeout_s, self._paces[0].is_done
        if self._bounds_age and not done and time.monotonic() - since > limit:
            raise LinkError(
                f"link {self._first - 1} -> {self._first}: whatever came in {limit:g} s was older "
                f"than method.max_age={self._method.max_age} outputs of the stage below. Allow "
                "more, or take method.policy=block, which slows that stage down"
            )

    @property
    def _bounds_age(self) -> bool:
        return self._method.max_age is not None

    def _turn(self, batch: Batch) -> None:
        pace, outbox = self._paces[0], self._outbox
        learns = not pace.is_done
        self.step = pace.updates + learns
        self._timer.steps_to(pace.updates + 1)
        start, waited = time.perf_counter(), 0.0

        def emit(features: Tensor) -> None:
            nonlocal waited
            assert outbox is not None
            self._timer.lap(self._first, Kind.BUSY, "forward")
            before = time.perf_counter()
            self._outputs += 1
            self._made.append(time.time_ns())
            if self._bounds_age:  # a word to the store, which takes some tenths of a millisecond
                self._group.store.add(_outputs(self._first), 1)
            header = Header(Phase.TRAIN, self._outputs, len(batch.labels))
            outbox.send(header, {LABELS: batch.labels, ACTIVATIONS: features.detach()})
            self._timer.lap(self._first, Kind.WAIT_OUTPUT, "send")
            waited = time.perf_counter() - before

        pace.turn(*batch, emit if outbox is not None else None)
        slower = self._method.slowdown_of(self._first) - 1
        if slower > 0:
            time.sleep(slower * (time.perf_counter() - start - waited))
        self._timer.lap(self._first, Kind.BUSY, "step")
        if learns:
            self._updated(pace, len(batch.labels))
            self._say_when_done()

    def _say_when_done(self) -> None:
        if self._paces[0].is_done and not self._has_told:
            self._group.store.set(_done(self.topology.rank), "")
            self._has_told = True

    def _staleness(self, stage: Stage) -> dict[str, Any]:
        updates = self._paces[0].updates
        dropped = 0 if self._outbox is None else self._outbox.dropped
        replay = None if self._inbox is None else self._replay
        if replay is None:
            return summarize(None, updates, self._outputs, dropped)
        if not self._bounds_age:  # which counts them as it reads
            made = array("q", b64decode(self._group.store.get(_made(stage.index - 1))))
            replay.usage.ages = ages(made, self._read, replay.usage.numbers)
        below, depth = self._fields[stage.index - 1], self.config.pipeline.depth
        row = self._method.receives(stage.index - 1, depth, below.row_bytes, below.dtype.itemsize)
        size = row * self.plan.largest_rows(Phase.TRAIN)
        return summarize(replay, updates, self._outputs, dropped, self._waits, size)


def _done(rank: int) -> str:
    return f"asynchronous/done/{rank}"


def _made(stage: int) -> str:
    return f"asynchronous/made/{stage}"


def _outputs(stage: int) -> str:
    return f"asynchronous/outputs/{stage}"

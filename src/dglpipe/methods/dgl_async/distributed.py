"""Asynchronous learning on several processes: every stage in its own process, at its own speed.

A stage learns from the batches in its replay buffer. It waits only if the buffer has no batch that
may be read, or for its previous transfer. Test batches follow the training batches on the links: a
stage starts an evaluation when the first test batch arrives, with its weights of that moment.
"""

from __future__ import annotations

import itertools
import json
import time
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from dglpipe.config import AsyncConfig
from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.errors import LinkError, RejoinError
from dglpipe.methods.base import RunContext
from dglpipe.methods.dgl_async.base import AsyncRunner
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
from dglpipe.methods.events import Event, Update
from dglpipe.monitoring.timers import Kind
from dglpipe.pipeline.inputs import Arrival, arrival
from dglpipe.pipeline.message import ACTIVATIONS, LABELS
from dglpipe.pipeline.stage import Stage
from dglpipe.pipeline.stores import Store
from dglpipe.pipeline.transport import Header


class TestBatches:
    """The test batches of a stage; its training batches come from `AsyncReceiver.read`.

    Attributes:
        next: the batch that comes next.
    """

    workers: int | None = None

    def __init__(self, receiver: AsyncReceiver) -> None:
        self._receiver = receiver
        self.next: BatchItem | None = None

    def take(self) -> Arrival:
        """The next test batch."""
        assert self.next is not None
        return arrival(self.next, self._receiver.test(self.next), ())

    def check(self) -> None:
        """Does nothing: the receiver checks every message on arrival."""

    def close(self) -> None:
        self._receiver.close()


class DistributedRunner(AsyncRunner):
    """Runs the one stage of a process."""

    def __init__(self, context: RunContext, settings: AsyncConfig) -> None:
        (self._stage,) = context.stages
        self._index = self._stage.index
        self._sender = self._open_sender(context, settings)
        super().__init__(context, settings, self._sender, {})
        (self._own,) = self.updates
        self._done = context.done
        self._links = context.group.links
        # An evaluation is complete up to a multiple of its batches.
        self._tested = self._evaluated = self.schedule.tests_before(context.done)
        self._is_whole = False
        self._earlier = self._outputs = self._outputs_of_earlier_processes()
        self._waits = 0
        # System time in ns at which each output was computed and each batch was read.
        self._made, self._read = array("q"), array("q")
        self._has_announced = False
        self._receiver: AsyncReceiver | None = None
        if context.group.previous is None:
            self._order, ahead = itertools.tee(self._items())
            self.inputs = context.open_data(item for item in ahead if item.rows)
        else:
            self._receiver = self._open_receiver()
            self._tests = self.inputs = TestBatches(self._receiver)

    def _outputs_of_earlier_processes(self) -> int:
        """Number of outputs of the processes that the stage has had before. The numbers of outputs
        go on, because the stage above keeps batches of an earlier process."""
        store, key = self.context.group.store, _outputs(self._index)
        return store.add(key, 0) if self.context.group.generation else 0

    def _open_sender(self, context: RunContext, settings: AsyncConfig) -> AsyncSender | None:
        if context.group.following is None:
            return None
        buffers = context.method.buffers(self._index, context.plan.config.pipeline.depth)
        return AsyncSender(
            context.group.following,
            context.plan.formats(self._index),
            context.device.torch_device,
            buffers.sender,
            settings.policy_of(self._index) == "overwrite",
            _engine(context, f"to stage {self._index + 1}"),
            context.group.relink_following,
        )

    def _open_receiver(self) -> AsyncReceiver:
        context, settings, link = self.context, self.settings, self._index - 1
        assert context.group.previous is not None
        storage = StorageFormat(settings, context.device, self.fields[link].dtype)
        buffers = context.method.buffers(link, context.plan.config.pipeline.depth)
        self._replay: Buffer = InOrder()
        if settings.policy_of(link) == "overwrite":
            rules = settings.read_rule, settings.max_reuse, settings.max_age
            self._replay = Replay(settings.buffer, *rules)
        return AsyncReceiver(
            context.group.previous,
            context.plan.formats(link),
            context.device.torch_device,
            self._replay,
            # Stored batches that need no conversion stay in their message slots.
            buffers.receiver + (0 if storage.converts else buffers.stored),
            storage,
            self.schedule.last_test,
            f"link {link} -> {self._index}",
            _engine(context, f"from stage {link}"),
            [field.name for field in context.plan.extras(link)],
            context.group.relink_previous,
            1 if self._links is None else self.schedule.test_batches,
        )

    def _items(self) -> Iterator[BatchItem]:
        """The batches of stage 0, in order: all batches of the schedule, further training batches
        until the other stages are done, then the last evaluation."""
        schedule, done = self.schedule, self._done
        if done < schedule.steps:
            yield from schedule.tests_after(done)
        store, size = self.context.group.store, self.context.topology.layout.world_size
        everyone_done = [_done(rank) for rank in range(size)]
        for number in itertools.count(done + 1):
            if number > schedule.steps and store.check(everyone_done):
                yield from schedule.tests_after(schedule.steps)
                return
            yield schedule.fed(number)
            if number < schedule.steps:
                yield from schedule.tests_after(number)

    def run(self) -> Iterator[Event]:
        """Trains and evaluates the stage as batches arrive."""
        self._announce_done()
        if self._receiver is None:
            yield from self._run_first()
        else:
            yield from self._run_other(self._receiver)
        if self._sender is not None:
            self._sender.close()
            made = b64encode(self._made.tobytes()).decode()
            record = json.dumps({"earlier": self._earlier, "made": made})
            self.context.group.store.set(_made(self._index), record)
        if self._links is not None:
            self._links.finish()

    def _run_first(self) -> Iterator[Event]:
        """The loop of stage 0."""
        for item in self._order:
            if item.phase is Phase.TEST:
                yield from self.evaluate(item)
                continue
            self.timer.lap(self._index, Kind.OTHER)
            batch = self.inputs.take()
            self.timer.lap(self._index, Kind.LOADING)
            yield from self._learn(Batch(batch.batch, batch.labels))

    def _run_other(self, receiver: AsyncReceiver) -> Iterator[Event]:
        """The loop of a stage above stage 0."""
        own, since = self._own, time.monotonic()
        while self._evaluated < self.schedule.last_test:
            # Train between two evaluations, not during an evaluation.
            while not self.evaluation.is_open and not receiver.has_test:
                self.timer.lap(self._index, Kind.OTHER)
                # With policy=block, unread batches would stop the stage below.
                idle = own.is_done and self._sender is None and self._replay.keeps
                if self._bounds_age:
                    outputs = self.context.group.store.add(_outputs(self._index - 1), 0)
                    receiver.know_of(outputs)
                batch = None if idle else receiver.read(learns=not own.is_done)
                if batch is None:
                    self._waits += not own.is_done
                    # No batch has arrived yet, or none can arrive.
                    if not self._replay.usage.written or (self._bounds_age and receiver.is_away):
                        since = time.monotonic()
                    self._refuse_to_starve(since)
                    receiver.wait()
                    self.timer.lap(self._index, Kind.WAIT_INPUT)
                else:
                    if not own.is_done:
                        self._read.append(time.time_ns())
                    yield from self._learn(batch)
                    since = time.monotonic()
            yield from self._evaluate_next(receiver)
            since = time.monotonic()  # exclude the time of the evaluation

    def _evaluate_next(self, receiver: AsyncReceiver) -> Iterator[Event]:
        """Evaluates the next test batch; yields after the last batch of an evaluation.

        If stages can be started again, batches may be missing, and a stage below may send an
        evaluation again. An evaluation with a missing batch has no result.

        Raises:
            RejoinError: the last evaluation misses a batch, or the stage has updates left.
        """
        number: int | None = self._tested + 1
        if self._links is not None:
            number = receiver.next_test()
        if number is None:
            self.evaluation.abandon(self.exits)
            return
        if number <= self._evaluated:
            receiver.skip_test()
            return
        item = self._tests.next = self.schedule.test_item(number)
        if number != self._tested + 1:
            self.evaluation.abandon(self.exits)
        if not self.evaluation.is_open:
            self._is_whole = (number - 1) % self.schedule.test_batches == 0
            is_last = self._links is not None and item.step == self.schedule.steps
            if is_last and not (self._is_whole and self._own.is_done):
                raise RejoinError(
                    f"stage {self._index} came back during the last evaluation, after "
                    f"{self._own.count} of {self.schedule.steps} updates"
                )
        self._tested = number
        for event in self.evaluate(item):
            if self._is_whole:
                self._evaluated = number
                yield event
            else:
                self.exits.forget()

    def _refuse_to_starve(self, since: float) -> None:
        """Raises LinkError if no batch of the allowed age has arrived within `timeout_s`.

        Args:
            since: time of the last read batch, in seconds of `time.monotonic`.
        """
        limit, done = self.context.plan.config.timeout_s, self._own.is_done
        if self._bounds_age and not done and time.monotonic() - since > limit:
            raise LinkError(
                f"link {self._index - 1} -> {self._index}: every batch received in {limit:g} s was "
                f"older than method.max_age={self.settings.max_age} outputs of the stage below. "
                "Raise method.max_age, or set method.policy=block, which slows that stage down"
            )

    @property
    def _bounds_age(self) -> bool:
        return self.settings.max_age is not None

    def _learn(self, batch: Batch) -> Iterator[Update]:
        """Computes and sends the output for `batch`, and learns unless the stage is done."""
        own, sender = self._own, self._sender
        learns = not own.is_done
        self.step = own.count + learns
        self.timer.steps_to(own.count + 1)
        start, waited = time.perf_counter(), 0.0

        def emit(features: Tensor) -> None:
            nonlocal waited
            assert sender is not None
            self.timer.lap(self._index, Kind.BUSY, "forward")
            before = time.perf_counter()
            self._outputs += 1
            self._made.append(time.time_ns())
            # A request to the store takes some tenths of a millisecond.
            if self._bounds_age or self._links is not None:
                self.context.group.store.add(_outputs(self._index), 1)
            header = Header(Phase.TRAIN, self._outputs, len(batch.labels))
            parts = {LABELS: batch.labels, ACTIVATIONS: features.detach()}
            sender.send(header, parts | self.extras(self._index, batch, features))
            self.timer.lap(self._index, Kind.WAIT_OUTPUT, "send")
            waited = time.perf_counter() - before

        emits = emit if sender is not None else None
        own.learn(batch.features, batch.labels, emits, batch.extras)
        slower = self.settings.slowdown_of(self._index) - 1
        if slower > 0:
            time.sleep(slower * (time.perf_counter() - start - waited))
        self.timer.lap(self._index, Kind.BUSY, "step")
        if learns:
            yield self.update(own, len(batch.labels), [self._stage])
            self._announce_done()

    def _announce_done(self) -> None:
        """Announces in the store, once, that the stage has made all of its updates."""
        if self._own.is_done and not self._has_announced:
            self.context.group.store.set(_done(self.context.topology.rank), "")
            self._has_announced = True

    def staleness(self, stage: Stage) -> dict[str, Any]:
        dropped = 0 if self._sender is None else self._sender.dropped
        if self._receiver is None:
            return summarize(None, self._own.count, self._outputs, dropped)
        replay, link = self._replay, stage.index - 1
        if not self._bounds_age:  # with max_age, the buffer has counted the ages
            record = json.loads(self.context.group.store.get(_made(link)))
            made, earlier = array("q", b64decode(record["made"])), record["earlier"]
            replay.usage.ages = ages(made, self._read, replay.usage.numbers, earlier)
        plan, field = self.context.plan, self.fields[link]
        buffers = self.context.method.buffers(link, plan.config.pipeline.depth)
        row = buffers.receiver_bytes(field.row_bytes, field.dtype.itemsize)
        size = row * self.schedule.largest_rows(Phase.TRAIN)
        return summarize(replay, self._own.count, self._outputs, dropped, self._waits, size)


def _engine(context: RunContext, name: str) -> ProgressEngine:
    if context.device.is_cuda:
        return EventProgressEngine(context.device.torch_device)
    return ThreadProgressEngine(name)


def withdraw_done(store: Store, rank: int) -> None:
    """Withdraws the announcement of a stage that is started again, and may have updates left."""
    store.delete_key(_done(rank))


def _done(rank: int) -> str:
    return f"asynchronous/done/{rank}"


def _made(stage: int) -> str:
    return f"asynchronous/made/{stage}"


def _outputs(stage: int) -> str:
    return f"asynchronous/outputs/{stage}"

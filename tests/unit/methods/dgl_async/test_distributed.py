"""The runner of one asynchronous stage; its links are scripted, its threads real.

scripted messages ──▶ buffer ──▶ stage 1 ──▶ messages in memory
"""

from __future__ import annotations

import itertools
import json
import threading
import time

import pytest
import torch

from dglpipe.data.batch_schedule import Phase
from dglpipe.errors import LinkError
from dglpipe.methods.events import Evaluation, Update
from dglpipe.pipeline.message import ACTIVATIONS, ENSEMBLE, LABELS
from dglpipe.pipeline.transport import Header, Slot
from harness.runners import (
    ScriptedInputs,
    arrivals,
    changed,
    evaluated,
    fail_at,
    is_cut_off,
    open_runner,
    read_message,
    report_of,
    states,
    watch,
)
from harness.worlds import CPU

OVERWRITE = ("method=dgl_async",)
BLOCK = (*OVERWRITE, "method.policy=block", "pipeline.depth=4")


class Below:
    """The stage below: it sends random batches."""

    def __init__(self, runner):
        context = runner.context
        schedule = context.plan.schedule
        self._incoming = context.group.previous.incoming
        self._slot = Slot(context.plan.formats(context.link_below), CPU.torch_device)
        self._training = arrivals(runner, itertools.repeat(schedule.fed(1)))
        self._tests = arrivals(runner, itertools.cycle(schedule.tests_after(schedule.steps)))
        self.sent = []

    def train(self, number=None):
        batch = next(self._training)
        self.sent.append(batch)
        self._send(Header(Phase.TRAIN, number or len(self.sent), len(batch.labels)), batch)

    def test(self, number=1):
        batch = next(self._tests)
        self._send(Header(Phase.TEST, number, len(batch.labels)), batch)
        return batch

    def wait(self):
        """Returns when the receiver has taken all messages."""
        while not self._incoming.empty():
            time.sleep(0.001)

    def _send(self, header, batch):
        views = self._slot.views(header)
        views[LABELS].copy_(batch.labels)
        views[ACTIVATIONS].copy_(batch.batch)
        if batch.ensemble is not None:
            views[ENSEMBLE].copy_(batch.ensemble)
        self._slot.words.copy_(torch.tensor([int(word) for word in header]))
        self._incoming.put(self._slot.buffer.clone())


def open_middle(*overrides):
    runner = open_runner(*overrides, processes=3, rank=1)
    return runner, runner.stages[0], Below(runner)


def test_a_link_that_blocks_teaches_every_batch_once_and_in_order():
    runner, stage, below = open_middle(*BLOCK)
    lessons, events = watch([stage]), runner.run()
    for _ in range(3):
        below.train()
    below.wait()  # so that there are several to choose from
    for step, sent in enumerate(below.sent, 1):
        before = states([stage])
        update = next(events)
        assert (update.step, update.stages, update.rows) == (step, [stage], 4)
        assert changed([stage], before) == [1]
        assert torch.equal(lessons[-1].inputs, sent.batch)
        assert torch.equal(lessons[-1].labels, sent.labels)
        assert is_cut_off(lessons[-1].inputs)
    below.test()
    assert isinstance(next(events), Evaluation)
    assert next(events, None) is None
    for number, lesson in enumerate(lessons, 1):
        header, parts = read_message(runner, number - 1)
        assert header == (Phase.TRAIN, number, 4)
        assert torch.equal(parts[ACTIVATIONS], lesson.output), "with the weights before the step"
        assert torch.equal(parts[LABELS], lesson.labels)


def test_a_link_that_overwrites_replays_the_batch_that_is_there():
    runner, stage, below = open_middle(*OVERWRITE)
    lessons, events = watch([stage]), runner.run()
    below.train()
    assert [next(events).step for _ in range(3)] == [1, 2, 3]
    assert all(torch.equal(one.inputs, below.sent[0].batch) for one in lessons)
    below.test()
    assert [type(event) for event in events] == [Evaluation]
    record = json.dumps({"earlier": 0, "made": "AQAAAAAAAAA="})  # an output at 1 ns
    runner.context.group.store.set("asynchronous/made/0", record)
    said = runner.report(stage)["staleness"]
    assert (said["reads"], said["repeats"], said["received"]) == (3, 2, 1)


def test_an_evaluation_and_the_batches_after_the_last_update_change_no_weight():
    runner, stage, below = open_middle(*BLOCK)
    lessons, events = watch([stage]), runner.run()
    for _ in range(3):
        below.train()
        next(events)
    before = states([stage])
    below.train()
    test = below.test()
    assert isinstance(next(events), Evaluation)
    assert next(events, None) is None
    assert changed([stage], before) == []
    assert len(lessons) == 3
    header, parts = read_message(runner, 3)
    assert header == (Phase.TRAIN, 4, 4)
    assert torch.equal(parts[ACTIVATIONS], evaluated(stage, below.sent[-1].batch))
    header, parts = read_message(runner, 4)
    assert header == (Phase.TEST, 1, 2)
    assert torch.equal(parts[ACTIVATIONS], evaluated(stage, test.batch))
    assert stage.test_totals().rows == 2


def test_an_evaluation_between_two_updates_changes_no_weight():
    runner, stage, below = open_middle(*BLOCK, "epochs=2")
    events = runner.run()
    below.train()
    assert isinstance(next(events), Update)
    before = states([stage])
    below.test()
    assert isinstance(next(events), Evaluation)
    assert changed([stage], before) == []
    below.train()
    assert isinstance(next(events), Update)
    assert stage.module.training
    below.test(number=2)
    assert isinstance(next(events), Evaluation)
    assert next(events, None) is None


def test_nothing_is_left_at_the_end():
    others = set(threading.enumerate())
    runner, _, below = open_middle(*BLOCK)
    events = runner.run()
    engines = set(threading.enumerate()) - others
    assert {one.name for one in engines} == {"from stage 0", "to stage 2"}
    store = runner.context.group.store
    for _ in range(3):
        below.train()
        assert not store.check(["asynchronous/done/1"])
        next(events)
    below.test()
    next(events)
    assert store.check(["asynchronous/done/1"]), "the stages below may stop"
    assert not store.check(["asynchronous/made/1"])
    assert next(events, None) is None
    runner.close()
    assert store.check(["asynchronous/made/1"])
    assert len(runner.context.group.following.sent) == 4
    assert runner.context.group.following.under_way == 0
    assert not engines & set(threading.enumerate())


def test_stage_0_feeds_the_others_until_all_have_made_their_updates():
    runner = open_runner(*BLOCK, processes=3, rank=0)
    (stage,), plan, store = runner.stages, runner.context.plan, runner.context.group.store

    def script():
        for number in range(1, 6):
            if number == 5:
                for rank in (1, 2):
                    store.set(f"asynchronous/done/{rank}", "")
            yield plan.schedule.fed(number)
        yield from plan.schedule.tests_after(3)

    inputs = runner.inputs = ScriptedInputs(arrivals(runner, script()))
    lessons, events = watch([stage]), runner.run()
    assert [next(events).step for _ in range(3)] == [1, 2, 3]
    before = states([stage])
    assert [type(event) for event in events] == [Evaluation]
    assert changed([stage], before) == []
    assert len(lessons) == 3
    assert [taken.item.number for taken in inputs.taken] == [1, 2, 3, 4, 5, 1]
    expected = [lesson.output for lesson in lessons]
    expected += [evaluated(stage, taken.batch) for taken in inputs.taken[3:]]
    for number, features in enumerate(expected):
        assert torch.equal(read_message(runner, number)[1][ACTIVATIONS], features)


def test_a_failure_is_reported_with_its_stage_and_step():
    runner, stage, below = open_middle(*BLOCK)
    fail_at(stage, 2)
    events = runner.run()
    below.train()
    assert isinstance(next(events), Update)
    below.train()
    with pytest.raises(ZeroDivisionError) as caught:
        next(events)
    text = report_of(runner, caught.value)
    assert "rank 1 (stage 1) failed at step 2: ZeroDivisionError: on purpose" in text
    below.test()
    runner.close()


def test_a_corrupt_message_is_reported_with_its_link_and_step():
    runner, _, below = open_middle(*BLOCK)
    events = runner.run()
    below.train()
    assert isinstance(next(events), Update)
    below.train(number=-7)
    with pytest.raises(LinkError) as caught:
        next(events)
    text = report_of(runner, caught.value)
    assert "rank 1 (stage 1) failed at step 1: LinkError: link 0 -> 1: corrupt message" in text

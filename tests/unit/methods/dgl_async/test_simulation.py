"""The runner of a simulation, on scripted draws and arrivals.

Every buffer has room for two outputs. `Draw(stage, read, written, gone)`:

    stage 0   writes 1, 2 | ................. | 3 over 1
    stage 1               | reads 2, 1, 1     |
    stage 2               | ................. | reads 2, 3, 2
"""

from __future__ import annotations

import pytest
import torch

from dglpipe.data.batch_schedule import BatchItem, Phase
from dglpipe.methods.dgl_async import simulation
from dglpipe.methods.dgl_async.draw_order import Draw
from dglpipe.methods.events import Evaluation, Update
from harness.runners import changed, evaluated, feed, is_cut_off, open_runner, states, watch

LEARNING = [
    *(Draw(0, 1, 1, None), Draw(0, 2, 2, None)),
    *(Draw(1, 2, 1, None), Draw(1, 1, 2, None), Draw(1, 1, 3, 1)),
    *(Draw(2, 2, 1, None), Draw(2, 3, 2, None), Draw(2, 2, 3, None)),
    Draw(0, 3, 3, 1),
]
"""Three updates of every stage, as many as the run has."""
HANDING_ON = [Draw(0, 4, 4, 2), Draw(1, 4, 4, 2), Draw(2, 4, 4, None)]


@pytest.fixture
def build(monkeypatch):
    """The runner of three stages that draws what a script says, and its inputs."""

    def make(script):
        def order(*_):
            return Script(script)

        monkeypatch.setattr(simulation, "DrawOrder", order)
        runner = open_runner("method=dgl_async", "method.simulate=true", "method.buffer=2")
        read = [
            event if isinstance(event, BatchItem) else runner.schedule.fed(event.read)
            for event in script
            if isinstance(event, BatchItem) or event.stage == 0
        ]
        return runner, feed(runner, read)

    return make


class Script(list):
    """In place of the order that is drawn from the seed."""

    replays, skipped = (), (0, 0, 0)


def test_every_draw_teaches_its_stage_from_the_output_that_it_reads(build):
    runner, inputs = build(LEARNING)
    lessons, events, outputs = watch(runner.stages), runner.run(), {}
    for draw in LEARNING:
        before = states(runner.stages)
        update, lesson = next(events), lessons[-1]
        assert changed(runner.stages, before) == [draw.stage]
        assert [stage.index for stage in update.stages] == [draw.stage]
        assert (
            update.step == lesson.step == 1 + sum(one.stage == draw.stage for one in lessons[:-1])
        )
        batch = (inputs.taken[-1].batch, inputs.taken[-1].labels)
        if draw.stage:
            batch = outputs[draw.stage - 1, draw.read]
        assert torch.equal(lesson.inputs, batch[0])
        assert torch.equal(lesson.labels, batch[1])
        assert is_cut_off(lesson.inputs)
        outputs[draw.stage, draw.written] = lesson.output, lesson.labels
    assert len(lessons) == 9
    assert next(events, None) is None


def test_the_buffers_hold_what_the_draws_left_there(build):
    runner, _ = build(LEARNING)
    events = list(runner.run())
    state = runner.state(runner.stages)
    assert [list(state[j]["shelf"]["batches"]) for j in (1, 2)] == [[2, 3], [2, 3]]
    assert state[0]["shelf"] is None
    assert [state[j]["outputs"] for j in range(3)] == [3, 3, 3]
    assert [state[j]["turns"] for j in range(3)] == [len(LEARNING)] * 3
    whole = [event.step for event in events if event.saved]
    assert whole == [1, 2, 3], "the last stage to make a step completes its checkpoint"
    assert [event.stages[0].index for event in events if event.saved] == [2, 2, 0]


def test_a_stage_that_has_made_its_updates_hands_on_and_does_not_learn(build):
    runner, inputs = build([*LEARNING, *HANDING_ON])
    lessons = watch(runner.stages)
    events = runner.run()
    for _ in LEARNING:
        next(events)
    before = states(runner.stages)
    assert next(events, None) is None, "no update"
    assert len(lessons) == len(LEARNING)
    assert changed(runner.stages, before) == []
    batch = inputs.taken[-1].batch
    state = runner.state(runner.stages)
    for stage in runner.stages[:2]:
        batch = evaluated(stage, batch)
        features, *_ = state[stage.index + 1]["shelf"]["batches"][4]
        assert torch.equal(features, batch)


def test_an_evaluation_between_two_draws_changes_nothing(build):
    test = BatchItem(Phase.TEST, 1, 1, 1, 0, 2, 2, True, 0, 1, 1)
    runner, inputs = build([*LEARNING[:3], test, *LEARNING[3:], test])
    events = runner.run()
    for _ in range(3):
        next(events)
    before, state = states(runner.stages), runner.state(runner.stages)
    assert isinstance(next(events), Evaluation)
    assert inputs.taken[-1].item is test
    assert changed(runner.stages, before) == []
    after = runner.state(runner.stages)
    assert [after[j]["turns"] for j in range(3)] == [state[j]["turns"] for j in range(3)]
    assert [list(after[j]["shelf"]["batches"]) for j in (1, 2)] == [[1, 2], [1]]
    assert isinstance(next(events), Update)
    assert all(stage.module.training for stage in runner.stages), "each has updates left"
    assert isinstance(list(events)[-1], Evaluation)
    assert not any(stage.module.training for stage in runner.stages), "each is done"

"""The runner of decoupled greedy learning, on scripted arrivals.

arrival ──▶ stage 0 learns ──▶ stage 1 learns ──▶ stage 2 learns
                  └ features before the step, detached
"""

from __future__ import annotations

import itertools

import pytest
import torch

from dglpipe.data.batch_schedule import Phase
from dglpipe.methods.events import Evaluation, Update
from dglpipe.pipeline.message import ACTIVATIONS, ENSEMBLE, LABELS
from harness.runners import (
    changed,
    evaluated,
    feed,
    is_cut_off,
    open_runner,
    read_message,
    states,
    watch,
)


def test_every_arrival_teaches_every_stage_once():
    runner = open_runner()
    inputs, lessons, events = feed(runner), watch(runner.stages), runner.run()
    for step, rows in ((1, 4), (2, 4), (3, 2)):
        lessons.clear()
        before = states(runner.stages)
        update = next(events)
        assert isinstance(update, Update)
        assert (update.step, update.rows) == (step, rows)
        assert [stage.index for stage in update.stages] == [0, 1, 2]
        assert [(one.stage, one.step) for one in lessons] == [(j, step) for j in range(3)]
        assert len(inputs.taken) == step
        assert changed(runner.stages, before) == [0, 1, 2]


def test_a_stage_learns_from_the_detached_features_of_the_stage_below():
    runner = open_runner()
    inputs, lessons, events = feed(runner), watch(runner.stages), runner.run()
    for _ in range(3):
        lessons.clear()
        next(events)
        assert lessons[0].inputs is inputs.taken[-1].batch
        for below, lesson in itertools.pairwise(lessons):
            assert torch.equal(lesson.inputs, below.output), "with the weights before the step"
            assert is_cut_off(lesson.inputs)
            assert torch.equal(lesson.labels, inputs.taken[-1].labels)


def test_a_message_has_the_features_before_the_step():
    runner = open_runner(processes=3, rank=1)
    inputs, lessons, events = feed(runner), watch(runner.stages), runner.run()
    for step in range(3):
        next(events)
        header, parts = read_message(runner, step)
        assert header == (Phase.TRAIN, step + 1, inputs.taken[step].item.rows)
        assert parts.keys() == {LABELS, ACTIVATIONS}
        assert torch.equal(parts[LABELS], inputs.taken[step].labels)
        assert torch.equal(parts[ACTIVATIONS], lessons[step].output)


def test_a_test_message_has_the_features_and_the_weighted_exits():
    runner = open_runner(processes=3, rank=1)
    inputs, (stage,) = feed(runner), runner.stages
    assert isinstance(list(runner.run())[-1], Evaluation)
    header, parts = read_message(runner, 3)
    taken = inputs.taken[-1]
    assert header == (Phase.TEST, 1, 2)
    assert parts.keys() == {LABELS, ENSEMBLE, ACTIVATIONS}
    assert torch.equal(parts[ACTIVATIONS], evaluated(stage, taken.batch))
    own = stage.module.eval()(taken.batch).softmax(dim=1)
    assert torch.equal(parts[ENSEMBLE], taken.ensemble + own / 2), "stage 1 of 3 weighs 1/2"


@pytest.mark.parametrize("rank", [0, 1])
def test_all_messages_have_left_at_the_end(rank):
    runner = open_runner(processes=3, rank=rank)
    feed(runner)
    for sent, _ in enumerate(runner.run(), 1):
        assert len(runner.context.group.following.sent) == sent
        assert runner.context.group.following.under_way == 1, "it leaves while the stage learns"
    assert runner.context.group.following.under_way == 0

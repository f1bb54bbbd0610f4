"""The runner of sequential learning, on scripted arrivals.

round 0: stage 0 learns, 1 and 2 get no rows
round 1: stage 0 computes in evaluation mode, 1 learns
round 2: stages 0 and 1 compute, 2 learns
"""

from __future__ import annotations

import pytest
import torch

from dglpipe.data.batch_schedule import Phase
from dglpipe.methods.events import Update
from dglpipe.pipeline.message import ACTIVATIONS, LABELS
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

METHOD = "method=sequential"


def test_a_round_trains_its_stage_and_leaves_all_others_as_they_are():
    """Weights and statistics of batch norm."""
    runner = open_runner(METHOD)
    inputs, lessons, steps = feed(runner), watch(runner.stages), []
    before = states(runner.stages)
    for event in runner.run():
        if isinstance(event, Update):
            turn = inputs.taken[-1].item.round
            assert changed(runner.stages, before) == [turn]
            assert [stage.index for stage in event.stages] == [turn]
            steps.append((lessons[-1].stage, lessons[-1].step))
        else:
            assert changed(runner.stages, before) == []
        before = states(runner.stages)
    assert steps == [(turn, step) for turn in range(3) for step in (1, 2, 3)]
    assert len(lessons) == 9


def test_a_stage_learns_from_the_stages_below_in_evaluation_mode():
    runner = open_runner(METHOD)
    inputs, lessons = feed(runner), watch(runner.stages)
    for event in runner.run():
        if isinstance(event, Update):
            expected = inputs.taken[-1].batch
            for stage in runner.stages[: lessons[-1].stage]:
                expected = evaluated(stage, expected)
            assert torch.equal(lessons[-1].inputs, expected)
            assert is_cut_off(lessons[-1].inputs)


def test_frozen_stages_stay_in_evaluation_mode_after_an_evaluation():
    runner = open_runner(METHOD)
    feed(runner)
    modes = [
        tuple(stage.module.training for stage in runner.stages)
        for event in runner.run()
        if isinstance(event, Update)
    ]
    assert modes == [(True,) * 3] * 3 + [(False, True, True)] * 3 + [(False, False, True)] * 3


def test_a_process_sends_rows_only_in_the_rounds_of_the_stages_above():
    runner = open_runner(METHOD, processes=3, rank=1)
    inputs, (stage,) = feed(runner), runner.stages
    for at, event in enumerate(runner.run()):
        if not isinstance(event, Update):
            continue
        taken, (header, parts) = inputs.taken[at], read_message(runner, at)
        turn, above = taken.item.round, taken.item.round == 2
        assert header == (Phase.TRAIN, taken.item.number, taken.item.rows if above else 0)
        assert (taken.item.rows > 0) == (turn > 0)
        if above:
            assert torch.equal(parts[LABELS], taken.labels)
            assert torch.equal(parts[ACTIVATIONS], evaluated(stage, taken.batch))
    assert len(inputs.taken) == 12
    assert runner.context.group.following.under_way == 0


@pytest.mark.parametrize(("rank", "steps"), [(0, [1, 2, 3]), (1, [4, 5, 6]), (2, [7, 8, 9])])
def test_a_process_reports_the_steps_of_its_own_stage(rank, steps):
    runner = open_runner(METHOD, processes=3, rank=rank)
    feed(runner)
    events = [event for event in runner.run() if isinstance(event, Update)]
    assert [event.step for event in events if event.stages] == steps

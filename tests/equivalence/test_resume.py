"""A killed run resumes from its last complete checkpoint and ends with the same weights."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from dglpipe.data.batch_schedule import Phase, build_batch_schedule
from dglpipe.runtime.open_data import open_images
from harness.configs import in_test_all, layout, make_config
from harness.training import (
    collect,
    complete_steps,
    make_trainer,
    run_planned,
    train_world,
    wait_for_checkpoints,
)
from harness.worlds import WorldError

STAGES = 3
SETTINGS = (f"pipeline.stages={STAGES}", "model.dropout=0.2", "optimizer=adam")
CHECKPOINTS = ("checkpoint.every=3", "checkpoint.keep=1")


@pytest.fixture(scope="module")
def whole():
    """The run of 8 steps that is never interrupted."""
    return train_world(make_config(*SETTINGS))


def train_and_die(group, plan, run_dir, dies_before, left=()):
    """Rank r kills itself when it takes the batch of step `dies_before[r]`, and when the complete
    checkpoints are at the steps `left`."""
    trainer = make_trainer(group, plan, run_dir)
    train = trainer.runner.train
    collect(trainer)

    def train_or_die(arrival):
        if arrival.item.step == dies_before.get(group.topology.rank):
            wait_for_checkpoints(run_dir, left)
            os.kill(os.getpid(), signal.SIGKILL)
        train(arrival)

    trainer.runner.train = train_or_die
    trainer.run()


@pytest.mark.parametrize(
    ("before", "dies_before", "after", "resumed_at"),
    [
        in_test_all(3, {2: 5}, 3, 3),  # the last stage
        in_test_all(3, {0: 8}, 1, 6),  # the first stage; goes on in one process
        in_test_all(1, {0: 7}, 3, 6),  # all of them; goes on in three
        (2, {1: 2}, 2, 0),  # before the first checkpoint
    ],
)
def test_killed_and_resumed(before, dies_before, after, resumed_at, whole, run_dir):
    config = make_config(*SETTINGS, *CHECKPOINTS)
    left = [resumed_at] * bool(resumed_at)
    with pytest.raises(WorldError, match="exit code -9"):
        run_planned(layout(STAGES, before), train_and_die, config, run_dir, dies_before, left)
    assert complete_steps(run_dir) == left
    config.resume = "auto"
    resumed = train_world(config, layout(STAGES, after), run_dir)
    steps = [line.step for line in resumed.lines if line.kind == "train"]
    assert steps, "something was left to train"
    assert min(steps) > resumed_at
    assert resumed.hashes == whole.hashes


@pytest.mark.slow
def test_files_of_a_killed_run_do_not_complete_a_checkpoint(run_dir):
    """Files of step 6 from the killed run do not count for the resumed run."""
    config = make_config(*SETTINGS, *CHECKPOINTS)
    with pytest.raises(WorldError):
        run_planned(layout(STAGES), train_and_die, config, run_dir, {2: 5}, [3])
    left = run_dir / "checkpoints" / "step_00000006"
    shutil.rmtree(left, ignore_errors=True)
    left.mkdir()
    for j in (1, 2):
        (left / f"stage_{j}.safetensors").write_bytes(b"left")
    config.resume = "auto"
    with pytest.raises(WorldError):
        run_planned(layout(STAGES), train_and_die, config, run_dir, {0: 4}, [3])
    assert complete_steps(run_dir) == [3]
    assert not left.exists()


@pytest.mark.slow
def test_without_resume_a_run_starts_from_the_beginning(whole, run_dir):
    config = make_config(*SETTINGS, *CHECKPOINTS)
    with pytest.raises(WorldError):
        run_planned(layout(STAGES), train_and_die, config, run_dir, {2: 5}, [3])
    assert complete_steps(run_dir) == [3]
    again = train_world(config, run_dir=run_dir)
    assert again.hashes == whole.hashes
    assert [line.step for line in again.lines if line.kind == "train" and line.stage == 0] == [4, 8]


@pytest.mark.slow
def test_a_resumed_run_repeats_the_evaluation_that_followed_its_checkpoint(run_dir):
    """The checkpoint of step 4 is older than the evaluation after that step."""
    config = make_config(*SETTINGS, "checkpoint.every=4")
    whole = train_world(config, run_dir=run_dir)
    config.resume = "auto"
    resumed = train_world(config, run_dir=run_dir)
    last = {line.stage: line for line in whole.lines if line.kind == "test" and line.step == 8}
    assert {line.stage: line for line in resumed.lines} == last
    assert len(last) == STAGES + 1
    assert resumed.hashes == whole.hashes


def window_of(group, plan, run_dir):
    """The step from which the run resumed, the rows of its throughput window, and whether it has a
    rate."""
    trainer = make_trainer(group, plan, run_dir)
    rates = []
    trainer._reporter.finish = lambda rate, *_: rates.append(rate)
    trainer.run()
    trainer.finish()
    return trainer.context.done, trainer._window._rows, rates[0] is not None


@pytest.mark.parametrize(
    ("steps", "opens", "has_rate"), [in_test_all(24, 12, True), (12, 9, False)]
)
def test_the_window_of_a_resumed_run_opens_when_its_chain_is_full(steps, opens, has_rate, run_dir):
    config = make_config(*SETTINGS, "checkpoint.every=8", "epochs=6", f"max_steps={steps}")
    with pytest.raises(WorldError, match="exit code -9"):
        run_planned(layout(STAGES, 1), train_and_die, config, run_dir, {0: 10}, [8])
    config.resume = "auto"
    plan = build_batch_schedule(config, open_images(config))
    items = [item for item in plan.items() if item.phase is Phase.TRAIN and item.step > opens]
    rows = sum(item.rows for item in items)
    for found in run_planned(layout(STAGES), window_of, config, run_dir):
        assert found == (8, rows, has_rate)

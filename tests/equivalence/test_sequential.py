"""Sequential learning equals a plain loop over stages, and DGL one stage at a time."""

from __future__ import annotations

import functools

import oracle
import pytest
import torch

from dglpipe.data import open_data
from dglpipe.data.batch_schedule import Phase, build_batch_schedule
from harness.configs import in_test_all, layout, make_config
from harness.training import hash_all, train_all, train_world

TINY = ("model.width=2", "batch_size=1000", "max_steps=3", "model.dropout=0.2")
SEQUENTIAL = "method=sequential"


@functools.cache
def by_oracle(stages):
    """The configurations of both precisions, with the weights of a plain loop."""
    configs = [
        make_config(*TINY, SEQUENTIAL, f"precision={precision}") for precision in ("fp32", "bf16")
    ]
    return configs, [oracle.train_sequentially(config, stages) for config in configs]


@pytest.mark.parametrize(
    ("stages", "processes"),
    [(3, 2), *(in_test_all(*one) for one in ((2, 2), (3, 1), (3, 3), (6, 4), (6, 6)))],
)
def test_weights_equal_a_plain_loop_on_any_number_of_processes(stages, processes):
    configs, expected = by_oracle(stages)
    assert hash_all(configs, layout(stages, processes)) == expected


@pytest.mark.slow
def test_the_first_stage_learns_as_in_decoupled_learning_and_the_others_do_not():
    runs = [
        train_world(make_config(*TINY, f"method={name}"), layout(3, 2))
        for name in ("dgl", "sequential")
    ]
    dgl, sequential = (run.hashes for run in runs)
    assert sequential[0] == dgl[0]
    assert sequential[1] != dgl[1]
    assert sequential[2] != dgl[2]


def test_each_round_is_a_training_of_its_own_and_is_logged_as_its_stage():
    config = make_config(*TINY, SEQUENTIAL, "log_every=1", "schedule=step", "schedule.every=1")
    run = train_world(config, layout(2))
    train = sorted((line for line in run.lines if line.kind == "train"), key=lambda at: at.step)
    assert [(line.step, line.epoch, line.stage) for line in train] == [
        *((1, 1, 0), (2, 1, 0), (3, 2, 0)),
        *((4, 3, 1), (5, 3, 1), (6, 4, 1)),
    ]
    rates = [line.learning_rate for line in train]
    assert rates[:3] == rates[3:] == pytest.approx([0.05, 0.05, 0.01])
    assert all(line.samples_per_second for line in train)
    tests = {(line.step, line.stage) for line in run.lines if line.kind == "test"}
    assert tests == {(step, stage) for step in (2, 3, 5, 6) for stage in (0, 1, "ensemble")}


def test_frozen_stages_keep_their_statistics():
    """Batch norm below the stage that learns is in evaluation mode."""
    whole = train_world(make_config(*TINY, SEQUENTIAL), layout(2))
    first = train_world(make_config(*TINY), layout(2))
    for key, tensor in first.tensors[0, 0].items():
        assert torch.equal(whole.tensors[0, 0][key], tensor), key


def test_the_plan_goes_through_the_epochs_once_a_stage():
    config = make_config(*TINY, SEQUENTIAL)
    plan = build_batch_schedule(config, open_data(config.data, config.seed), rounds=3)
    items = [item for item in plan.items() if item.phase is Phase.TRAIN]
    assert [item.round for item in items] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [item.round_step for item in items] == [1, 2, 3] * 3
    assert [item.round_epoch for item in items] == [1, 1, 2] * 3
    assert [item.epoch for item in items] == [1, 1, 2, 3, 3, 4, 5, 5, 6]
    assert [plan.crossing(item, 1).rows for item in items] == [0] * 6 + [1000, 437, 1000]


@pytest.mark.parametrize("done", [in_test_all(2), 3, in_test_all(4), in_test_all(5)])
def test_a_run_that_is_resumed_in_any_round_ends_the_same(done, tmp_path):
    whole = train_world(make_config(*TINY, SEQUENTIAL), layout(2)).hashes
    # As if killed after step `done`: later checkpoints are removed.
    config = make_config(*TINY, SEQUENTIAL, "checkpoint.every=1", "checkpoint.keep=9")
    train_world(config, layout(2), tmp_path)
    for folder in (tmp_path / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step_")) > done:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    config.resume = "auto"
    assert train_world(config, layout(2), tmp_path).hashes == whole


@pytest.mark.slow
def test_replicas_stay_together():
    config = make_config(*TINY, SEQUENTIAL, "pipeline.replicas=2")
    run = train_all([config], layout(2, 2, 2))[0]
    for stage in range(2):
        for key, tensor in run.tensors[0, stage].items():
            assert torch.equal(run.tensors[1, stage][key], tensor), key

"""Methods with messages down the chain equal plain loops, for every number of processes."""

from __future__ import annotations

import functools

import pytest
import torch
import two_way_oracle
from test_resume import train_and_die

from harness.configs import in_test_all, layout, make_config
from harness.training import complete_steps, hash_all, run_planned, train_world
from harness.worlds import WorldError

TINY = ("model.width=2", "batch_size=400", "epochs=2", "model.dropout=0.2")
"""8 steps; the last batch of an epoch has 237 rows."""
METHODS = {
    "ddg": ("method=ddg",),
    "features_replay": ("method=features_replay",),
    "dni": ("method=dni", "optimizer.lr=0.0005"),
    "dni, locked": ("method=dni", "method.delay=0", "optimizer.lr=0.0005"),
    "cdni": ("method=dni", "method.context=labels", "method.delay=2", "optimizer.lr=0.0005"),
}
QUICK = ("cdni",)
WORLDS = [
    (3, 2),
    *(in_test_all(*one) for one in ((2, 1), (2, 2), (3, 1), (3, 3), (6, 1), (6, 4), (6, 6))),
]


def configs_of(name):
    return [
        make_config(*TINY, *METHODS[name], f"precision={precision}")
        for precision in ("fp32", "bf16")
    ]


@functools.cache
def by_oracle(name, stages):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [expected(name, config, stages) for config in configs_of(name)]
    finally:
        torch.set_num_threads(threads)


def expected(name, config, stages):
    if "dni" in name:
        return two_way_oracle.synthetic(config, stages)
    return two_way_oracle.delayed(config, stages, replays=name == "features_replay")


@pytest.mark.parametrize(("stages", "processes"), WORLDS)
@pytest.mark.parametrize("name", [name if name in QUICK else in_test_all(name) for name in METHODS])
def test_weights_equal_a_plain_loop_on_any_number_of_processes(name, stages, processes):
    assert hash_all(configs_of(name), layout(stages, processes)) == by_oracle(name, stages)


@pytest.mark.slow
def test_without_delay_or_with_one_stage_they_are_backprop():
    """The last stage learns as in backprop; a chain of one stage is nothing else."""
    single = [make_config(*TINY, f"method={name}") for name in ("ddg", "features_replay")]
    backprop = make_config(*TINY, "method=backprop")
    assert hash_all(single, layout(1)) == [hash_all([backprop], layout(1))[0]] * 2


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("cdni", 3, 3),
        *(in_test_all(*one) for one in (("features_replay", 3, 3), ("dni, locked", 1, 3))),
        *(in_test_all(*one) for one in (("ddg", 1, 3), ("ddg", 3, 2), ("cdni", 2, 1))),
    ],
)
def test_a_killed_run_resumes_with_the_batches_that_were_under_way(name, before, after, run_dir):
    config = make_config(*TINY, *METHODS[name], "checkpoint.every=3", "checkpoint.keep=1")
    with pytest.raises(WorldError, match="exit code -9"):
        run_planned(layout(3, before), train_and_die, config, run_dir, {before - 1: 5}, [3])
    assert complete_steps(run_dir) == [3]
    config.resume = "auto"
    resumed = train_world(config, layout(3, after), run_dir)
    assert min(line.step for line in resumed.lines if line.kind == "train") > 3
    assert resumed.hashes == by_oracle(name, 3)[0]


@pytest.mark.parametrize("name", ["dni", in_test_all("ddg")])
def test_the_last_stage_is_the_only_exit(name):
    run = train_world(make_config(*TINY, *METHODS[name]), layout(3))
    tested = {line.stage for line in run.lines if line.kind == "test"}
    assert tested == {2, "ensemble"}
    trained = [line for line in run.lines if line.kind == "train"]
    assert {line.stage for line in trained if line.accuracy is not None} == {2}
    losses = {line.stage for line in trained if line.loss is not None}
    assert losses == ({0, 1, 2} if name == "dni" else {2})  # of the synthesisers

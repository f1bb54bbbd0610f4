"""`method.reset_optimizer`: every method learns as a plain loop that builds a new optimizer at each
drop of the learning rate, also after a resume at or beside a drop."""

from __future__ import annotations

import shutil

import oracle
import pytest
import torch

from dglpipe.errors import ConfigError
from dglpipe.runtime.plan import make_plan, plan_layout
from harness.configs import in_test_all, layout, make_config
from harness.training import hash_all, train_all, train_world

DROPS = ("schedule=step", "schedule.every=1", "schedule.factor=0.5")
SIZE = ("model.width=2", "batch_size=1000", "epochs=3", "max_steps=5", "model.dropout=0.2")
TINY = (*SIZE, *DROPS)
"""Two steps an epoch: the rate drops at steps 3 and 5."""
RESET = "method.reset_optimizer=true"
IN_STEP = (
    *("method=dgl_async", "method.simulate=true", "method.buffer=1"),
    *("method.order=sequential", "method.warmup=false"),
)
PLAIN = (
    *("model=custom", "model.target=harness.plug_ins:plain_network", "model.args={depth:6}"),
    *("batch_size=480", "epochs=3", "max_steps=7", *DROPS),
)
"""Without batch norm, for micro-batches and replicas: the rate drops at steps 4 and 7."""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 3])
def test_dgl_equals_a_plain_loop(processes):
    multistep = ("schedule=multistep", "schedule.milestones=[2]")
    own = "per_stage=[{},{schedule:{every:2}},{optimizer:{nesterov:true}}]"
    words = [DROPS, multistep, (*DROPS, own)]
    if processes == 1:
        plugged = ("method=custom", "method.target=dglpipe.methods.Dgl")
        words += [(*DROPS, *IN_STEP), (*DROPS, *plugged)]
    configs = [make_config(*SIZE, *more, RESET) for more in words]
    expected = [oracle.train(config, 3) for config in configs]
    assert hash_all(configs, layout(3, processes)) == expected
    kept = oracle.train(make_config(*TINY), 3)
    assert all(one != other for one, other in zip(expected[0], kept, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sequential_learning_equals_a_plain_loop_in_every_round(processes):
    config = make_config(*TINY, "method=sequential", RESET)
    expected = oracle.train_sequentially(config, 2)
    assert hash_all([config], layout(2, processes)) == [expected]
    kept = oracle.train_sequentially(make_config(*TINY, "method=sequential"), 2)
    assert all(one != other for one, other in zip(expected, kept, strict=True))


def backprop(*words):
    config = make_config(*PLAIN, "method=backprop", *words)
    return config, plan_layout(config.pipeline, config.method, cores=2)


def assert_close(one, other):
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, rtol=1e-4, atol=1e-5, msg=key)


def merged(run):
    return {key: tensor for (_, _), part in run.tensors.items() for key, tensor in part.items()}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["method.schedule=gpipe pipeline.stages=2", "pipeline.replicas=2"])
def test_backprop_equals_a_plain_loop(way):
    config, alone = backprop(RESET)
    whole = train_world(config, alone)
    assert whole.hashes == oracle.train(config, 1)
    assert_close(merged(whole), merged(train_world(*backprop(RESET, *way.split()))))
    kept = train_world(*backprop())
    assert any(
        not torch.allclose(one, merged(kept)[key], 1e-4, 1e-5) for key, one in merged(whole).items()
    )


@pytest.mark.slow
def test_replicas_stay_together():
    run = train_all([make_config(*TINY, RESET, "pipeline.replicas=2")], layout(2, 1, 2))[0]
    for stage in range(2):
        for key, tensor in run.tensors[0, stage].items():
            assert torch.equal(run.tensors[1, stage][key], tensor), key


def resumed(words, world, done, run_dir):
    """The hashes of a run that goes on from its checkpoint of step `done`."""
    config = make_config(*words, RESET, "log_every=1", "checkpoint.every=1", "checkpoint.keep=99")
    world = world or plan_layout(config.pipeline, config.method, cores=2)
    whole = train_world(config, world, run_dir)
    for folder in (run_dir / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step_")) > done:
            shutil.rmtree(folder)
    config.resume = "auto"
    run = train_world(config, world, run_dir)
    assert min(line.step for line in run.lines if line.kind == "train") == done + 1
    assert run.hashes == whole.hashes
    return run.hashes


@pytest.mark.parametrize("done", [in_test_all(1), 2, in_test_all(3)])
def test_a_run_resumed_at_a_drop_or_beside_it_ends_the_same(done, tmp_path):
    hashes = resumed(TINY, layout(2), done, tmp_path)
    assert hashes == oracle.train(make_config(*TINY, RESET), 2)


@pytest.mark.slow
@pytest.mark.parametrize("done", [6, 7, 8])
def test_a_sequential_run_resumed_in_its_second_round_ends_the_same(done, tmp_path):
    """Step 8 is step 3 of the second round."""
    words = (*TINY, "method=sequential")
    hashes = resumed(words, layout(2, 1), done, tmp_path)
    assert hashes == oracle.train_sequentially(make_config(*words, RESET), 2)


@pytest.mark.slow
@pytest.mark.parametrize("done", [2, 3, 4])
@pytest.mark.parametrize(
    "way", ["pipeline.stages=2 method.schedule=1f1b method.microbatches=2", "pipeline.replicas=2"]
)
def test_backprop_resumed_at_a_drop_or_beside_it_ends_the_same(way, done, tmp_path):
    resumed((*PLAIN, "method=backprop", *way.split()), None, done, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_simulation_resumed_at_a_drop_or_beside_it_ends_the_same(done, tmp_path):
    words = (*TINY, "method=dgl_async", "method.simulate=true", "method.slowdown=[1,2]")
    resumed(words, layout(2, 1), done, tmp_path)


@pytest.mark.parametrize("name", ["dgl", "sequential", "backprop", "dgl_async"])
@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("schedule=cosine",), "schedule: got 'cosine'"),
        (
            ("schedule=step", "per_stage=[{},{schedule:constant}]"),
            r"per_stage\[1\]\.schedule: got 'constant'",
        ),
    ],
)
def test_a_schedule_without_drops_is_refused(name, words, key):
    config = make_config(f"method={name}", "pipeline.stages=2", *words, RESET)
    with pytest.raises(ConfigError, match=rf"^{key}; allowed: step or multistep, which have drops"):
        make_plan(config, plan_layout(config.pipeline, config.method, cores=2))

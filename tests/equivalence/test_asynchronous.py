"""Asynchronous learning: equal to synchronous learning in lockstep; every message is counted."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time

import pytest
import torch

from dglpipe.config import AsyncConfig, from_yaml
from dglpipe.errors import ConfigError
from dglpipe.methods.dgl_async.staleness import draw_staleness
from dglpipe.pipeline.state_file import read_state
from dglpipe.runtime.plan import plan_layout, plan_run
from harness.configs import in_test_all, layout, make_config, small
from harness.training import (
    collect,
    hash_all,
    make_trainer,
    run_planned,
    train_all,
    train_world,
    wait_for_checkpoints,
)
from harness.worlds import WorldError

TINY = ("model.width=2", "batch_size=400", "max_steps=6", "model.dropout=0.2")
IN_STEP = (
    *("method=dgl_async", "method.simulate=true", "method.buffer=1"),
    *("method.order=sequential", "method.warmup=false"),
)
SIMULATED = ("method=dgl_async", "method.simulate=true", "method.buffer=3")
REAL = ("method=dgl_async", "method.buffer=3")


def precise(*overrides):
    return [make_config(*TINY, *overrides, f"precision={name}") for name in ("fp32", "bf16")]


@pytest.mark.parametrize("stages", [2, in_test_all(3), in_test_all(6)])
def test_a_sequential_simulation_is_synchronous_learning(stages):
    alone = layout(stages, 1)
    assert hash_all(precise(*IN_STEP), alone) == hash_all(precise(), alone)


@pytest.mark.parametrize(
    ("stages", "depth"),
    [
        (2, 2),
        *(in_test_all(*case) for case in ((2, 1), (2, 4), (3, 1), (3, 2), (3, 4))),
    ],
)
def test_links_that_block_are_synchronous_learning(stages, depth):
    configs = precise(*REAL, "method.policy=block", f"pipeline.depth={depth}")
    assert hash_all(configs, layout(stages)) == hash_all(precise(), layout(stages, 1))


@pytest.mark.parametrize("overrides", [IN_STEP, in_test_all((*REAL, "method.policy=block"))])
def test_in_lockstep_it_is_logged_and_tested_as_synchronous_learning(overrides):
    whole = train_world(make_config(*TINY, "log_every=2"), layout(3, 1))
    config = make_config(*TINY, "log_every=2", *overrides)
    run = train_world(config, layout(3, 1 if config.method.simulate else 3))
    for kind in ("train", "test"):
        found, wanted = (
            sorted(
                (line.step, str(line.stage), line.epoch, line.loss, line.accuracy)
                for line in one.lines
                if line.kind == kind
            )
            for one in (run, whole)
        )
        assert found == wanted, kind


@pytest.mark.slow
def test_a_simulation_is_a_function_of_the_seed():
    configs = [make_config(*TINY, *SIMULATED, f"seed={seed}") for seed in (0, 0, 1)]
    one, again, other = hash_all(configs, layout(3, 1))
    assert one == again
    assert one[0] != other[0]


def staleness(run):
    return [final["staleness"] for final in run.finals]


def assert_accounts(entries):
    """Every output of a stage is dropped, read, overwritten unread, or left in the buffer."""
    for below, above in itertools.pairwise(entries):
        assert above["received"] == below["outputs"] - below["dropped"]
        by_reads = {int(reads): count for reads, count in above["reads_by_entry"].items()}
        read = sum(count for reads, count in by_reads.items() if reads)
        unread = above["overwritten_unread"] + above["left_unread"]
        assert above["received"] == read + unread
        whole = above["reads"] + above["handed_on"]
        assert whole == sum(reads * count for reads, count in by_reads.items())
        assert above["reads"] == sum(above["ages"].values())
        assert above["repeats"] >= above["reads"] - read
    assert entries[-1]["outputs"] == 0


@pytest.mark.parametrize("slow", [in_test_all(0), 1, 2])
def test_every_stage_of_a_simulation_makes_its_updates_and_all_is_accounted_for(slow):
    factors = [2.0 if stage == slow else 1.0 for stage in range(3)]
    config = make_config(*TINY, *SIMULATED, f"method.slowdown={factors}", "log_every=1")
    run = train_world(config, layout(3, 1))
    entries = staleness(run)
    assert [entry["updates"] for entry in entries] == [6, 6, 6]
    assert_accounts(entries)
    assert entries[1]["buffer_bytes"] > 0
    steps = {(line.stage, line.step) for line in run.lines if line.kind == "train"}
    assert steps == {(stage, step) for stage in range(3) for step in range(1, 7)}
    tests = {(line.step, line.stage) for line in run.lines if line.kind == "test"}
    assert tests == {(step, stage) for step in (4, 6) for stage in (0, 1, 2, "ensemble")}


@pytest.mark.parametrize(
    "overrides",
    [
        in_test_all(()),
        in_test_all(("method.slowdown=[1.0,3.0,1.0]",)),
        ("method.slowdown=[3.0,1.0,1.0]", "method.max_age=1"),
        ("method.max_reuse=1", "method.read_rule=authors"),
        ("method.policy=[block,overwrite]", "pipeline.depth=1"),
        in_test_all(("method.storage_precision=bf16", "method.storage=host")),
    ],
)
def test_every_real_stage_makes_its_updates_and_all_is_accounted_for(overrides):
    config = make_config(*TINY, *REAL, "log_every=1", *overrides)
    run = train_world(config, layout(3))
    entries = staleness(run)
    assert [entry["updates"] for entry in entries] == [6, 6, 6]
    assert_accounts(entries)
    method = config.method
    for link, entry in enumerate(entries[1:]):
        ages, reads = map(int, entry["ages"]), map(int, entry["reads_by_entry"])
        if method.policy_of(link) == "block":
            assert entry["repeats"] == entries[link]["dropped"] == 0
        if method.max_age is not None:
            assert max(ages) <= method.max_age
        if method.max_reuse is not None:
            assert max(reads) <= method.max_reuse
    tests = {(line.step, line.stage) for line in run.lines if line.kind == "test"}
    assert tests == {(step, stage) for step in (4, 6) for stage in (0, 1, 2, "ensemble")}
    values = [value for own in run.tensors.values() for value in own.values()]
    assert all(torch.isfinite(value).all() for value in values)


def test_a_stage_that_is_done_keeps_its_weights():
    """Stage 0 finishes its updates long before the slow stage and continues to feed it."""
    quick, slow = (
        make_config(*TINY, *REAL, f"method.slowdown=[1.0,{factor}]") for factor in (1.0, 4.0)
    )
    runs = train_all([quick, slow], layout(2))
    assert runs[0].hashes[0] == runs[1].hashes[0]
    assert staleness(runs[1])[0]["outputs"] > 6


@pytest.mark.slow
def test_values_stored_in_half_precision_differ():
    whole, half = (
        make_config(*TINY, *IN_STEP, f"method.storage_precision={name}")
        for name in ("fp32", "bf16")
    )
    one, other = hash_all([whole, half], layout(2, 1))
    assert one == hash_all([make_config(*TINY)], layout(2, 1))[0]
    assert one[0] == other[0]
    assert one[1] != other[1]


def test_a_real_run_that_is_resumed_makes_the_rest_of_its_updates(tmp_path):
    config = make_config(*TINY, *REAL, "checkpoint.every=2", "checkpoint.keep=9")
    train_world(config, layout(2), tmp_path)
    for file in (tmp_path / "checkpoints" / "step_00000006").iterdir():
        file.unlink()
    config = make_config(*TINY, *REAL, "resume=auto")
    run = train_world(config, layout(2), tmp_path)
    assert [entry["updates"] for entry in staleness(run)] == [6, 6]
    train = [line.step for line in run.lines if line.kind == "train"]
    assert min(train) > 4


KILLED = (
    *(
        "method=dgl_async",
        "method.simulate=true",
        "method.buffer=3",
        "method.slowdown=[1.0,2.0,1.0]",
    ),
    *("model.dropout=0.2", "optimizer=adam", "epochs=3", "log_every=1"),
    *("checkpoint.every=3", "checkpoint.keep=1"),
)


def simulate_and_die(group, plan, run_dir, dies_before):
    """Kills its process at draw `dies_before`."""
    trainer = make_trainer(group, plan, run_dir)
    draw, count = trainer.runner._draw, itertools.count(1)
    saved, save = [], trainer.checkpoints.save
    trainer.checkpoints.save = lambda step, *rest: (saved.append(step), save(step, *rest))
    collect(trainer)

    def draw_or_die(event):
        if next(count) == dies_before:
            if saved:
                wait_for_checkpoints(run_dir, saved[-plan.config.checkpoint.keep :])
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(event)

    trainer.runner._draw = draw_or_die
    trainer.run()


@pytest.mark.parametrize("keeping", [(), in_test_all(("method.storage_precision=bf16",))])
def test_a_killed_simulation_resumes_to_the_same_weights(keeping, tmp_path):
    config = make_config(*KILLED, *keeping)
    alone = layout(3, 1)
    whole = train_world(config, alone, tmp_path / "whole")
    config.resume = "auto"
    checkpoints, found = tmp_path / "run" / "checkpoints", []
    for dies_before in (4, 25, 20):  # before the first checkpoint, and after later checkpoints
        with pytest.raises(WorldError, match="exit code -9"):
            run_planned(alone, simulate_and_die, config, tmp_path / "run", dies_before)
        # The kill may come while an old checkpoint, without its manifest, is being deleted.
        found.append([one.parent.name for one in checkpoints.glob("step_*/manifest.json")])
    assert found[0] == []
    assert 0 < len(found[1]) == len(found[2])
    assert found[1] != found[2]
    files = [checkpoints / found[2][0] / f"stage_{j}.safetensors" for j in range(3)]
    states = [read_state(file.read_bytes())[1] for file in files]
    updates = [state["parts"]["more"]["updates"] for state in states]
    assert len(set(updates)) > 1, "the stages are not at the same step"
    resumed = train_world(config, alone, tmp_path / "run")
    assert resumed.hashes == whole.hashes
    assert staleness(resumed) == staleness(whole)
    assert learnt(resumed) == {one for one in learnt(whole) if one[1] > updates[one[0]]}, (
        "every stage resumes after its own last step"
    )


def learnt(run):
    """(stage, step, epoch, loss, accuracy) of every line of training."""
    return {
        (line.stage, line.step, line.epoch, line.loss, line.accuracy)
        for line in run.lines
        if line.kind == "train"
    }


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (("method.buffer=0",), "method.buffer: got 0; allowed: a whole number from 1"),
        (("method.slowdown=[0.5,1.0]",), "method.slowdown: got 0.5"),
        (("method.slowdown=[1.0,1.0,2.0]",), "method.slowdown: .* a list of 2 factors"),
        (("method.max_reuse=2", "method.policy=block"), "method.max_reuse: got 2; allowed: null"),
        (("method.max_age=2", "method.policy=[block]"), "method.max_age: got 2; allowed: null"),
        (("method.policy=[block,block]",), "method.policy: .* a list of 1, one per link"),
        (("method.policy=drop",), "method.policy: got 'drop'; allowed: overwrite, block"),
        (("method.read_rule=newest",), "method.read_rule: got 'newest'"),
        (("method.order=sequential",), "method.order: .*simulate"),
        (("method.simulate=true", "method.policy=block"), "method.policy: got 'block'"),
        (("pipeline.processes=1",), "pipeline.processes: got 1; allowed: 2"),
        (("method.simulate=true", "pipeline.processes=2"), "pipeline.processes: got 2; allowed: 1"),
        (("pipeline.replicas=2",), "pipeline.replicas: got 2; allowed: 1"),
    ],
)
def test_refuses(overrides, text):
    with pytest.raises(ConfigError, match=text):
        config = make_config("method=dgl_async", *overrides)
        plan_layout(config.pipeline, config.method, cores=2)


def test_the_defaults_equal_the_file():
    assert make_config("method=dgl_async").method == AsyncConfig()


def test_the_plan_states_the_buffer_and_the_limit_counts_it():
    config = make_config("method=dgl_async", "pipeline.split=[3]")
    stages = plan_run(config).stages
    below = stages[0].link_bytes_per_sample * config.batch_size
    assert stages[0].buffer_bytes == config.pipeline.depth * below
    assert stages[1].buffer_bytes == (config.method.buffer + 2) * below
    for overrides, held in (
        (("method.policy=block",), config.pipeline.depth),
        (("method.simulate=true",), config.method.buffer),
        (("method.simulate=true", "method.storage_precision=bf16"), config.method.buffer / 2),
    ):
        other = make_config("method=dgl_async", "pipeline.split=[3]", *overrides)
        assert plan_run(other).stages[1].buffer_bytes == held * below
    limit = max(stage.memory_bytes for stage in stages)
    words = ("method=dgl_async", "pipeline.split=[3]", f"pipeline.memory_limit={limit}")
    assert plan_run(make_config(*words)).stages == stages
    with pytest.raises(
        ConfigError, match=r"Stage 1 .* including .* MiB for the buffers of its links"
    ):
        plan_run(make_config(*words, "method.buffer=30"))


@pytest.mark.slow
def test_the_picture_has_one_column_per_buffer(tmp_path):
    entries = staleness(train_world(make_config(*TINY, *SIMULATED), layout(3, 1)))
    draw_staleness(entries, tmp_path / "staleness.png")
    assert (tmp_path / "staleness.png").stat().st_size > 5000
    draw_staleness([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_tests_between_the_lines_of_training_count_test_images_alone():
    """A slow stage reaches an evaluation between two log lines."""
    config = make_config(*TINY, *SIMULATED, "log_every=5", "method.slowdown=[1.0,1.0,4.0]")
    run = train_world(config, layout(3, 1))
    in_step = train_world(make_config(*TINY, "log_every=5"), layout(3, 1))
    hits = [line.accuracy * 360 for line in run.lines if line.kind == "test"]
    assert len(hits) == 2 * 4
    assert hits == pytest.approx([round(one) for one in hits], abs=1e-6)
    # The weights of stage 0 do not depend on which stage is slow.
    assert run.hashes[0] == in_step.hashes[0]


@pytest.mark.slow
@pytest.mark.parametrize("most", [0, in_test_all(40), in_test_all(None)])
def test_a_stage_waits_instead_of_reading_a_batch_that_is_too_old(most, start, run_dir):
    """Messages arrive several outputs late. With max_age=0, no message is young enough while the
    stage below continues. Without a limit, ages count all later outputs, received or not."""
    words = small("method=dgl_async", "max_steps=12", "epochs=3", "evaluate.every=0")
    # About 8 outputs follow while a message is in flight; the bounds allow for a busy machine.
    words += ["model.width=8", "link.delay_ms=80", f"method.max_age={most or 0}", "timeout_s=4"]
    if most is None:
        words.remove("method.max_age=0")
    run = start("train", *words, f"run_dir={run_dir}")
    if most != 0:
        assert run.wait() == 0, run.stderr
        entry = json.loads((run_dir / "summary.json").read_text())["staleness"][1]
        assert 1 <= max(map(int, entry["ages"])) <= (most or 1000)
        assert entry["mean_age"] >= 1
        assert sum(entry["ages"].values()) == entry["reads"]
    else:
        assert run.wait() == 1
        assert "every batch received in 4 s was older than method.max_age=0 outputs" in run.stderr
    run.assert_nobody_left()


def evaluate_at_length(group, plan):
    """Every evaluation of the last stage takes longer than `timeout_s`."""
    trainer = make_trainer(group, plan)
    evaluate = trainer.runner.evaluate

    def evaluate_and_wait(item):
        yield from evaluate(item)
        if item.ends_pass and group.topology.is_last:
            time.sleep(1.5 * plan.config.timeout_s)

    trainer.runner.evaluate = evaluate_and_wait
    trainer.run()
    return trainer.runner.updates[0].count


@pytest.mark.slow
def test_an_evaluation_may_take_longer_than_timeout_s():
    bound = ("method.max_age=0", "method.max_reuse=1", "method.slowdown=[8.0,1.0]", "timeout_s=2")
    config = make_config(*TINY, *REAL, *bound)
    assert run_planned(layout(2), evaluate_at_length, config) == [6, 6]


def test_a_simulation_resumed_after_its_last_stage_reports_time_fractions(tmp_path):
    """Stage 0 is slow: the last stage finishes its updates long before."""
    own = ("epochs=5", "max_steps=20", "method.slowdown=[6.0,1.0]", "checkpoint.every=5")
    config, alone = make_config(*TINY, *SIMULATED, *own), layout(2, 1)
    with pytest.raises(WorldError, match="exit code -9"):
        run_planned(alone, simulate_and_die, config, tmp_path, 60)
    config.resume = "auto"
    finals = train_world(config, alone, tmp_path).finals
    assert finals[0]["busy_fraction"] > 0
    assert [final["staleness"]["updates"] for final in finals] == [20, 20]


@pytest.mark.slow
def test_a_sweep_takes_its_lists_from_the_experiment(start, tmp_path):
    words = ["-m", "experiment=async_buffer_digits", "seed=0", "method.buffer=1,5", "max_steps=2"]
    run = start("train", *words, f"run_dir={tmp_path / 'sweep'}")
    assert run.wait(120) == 0, run.stderr
    configs = [tmp_path / "sweep" / str(job) / "config.yaml" for job in range(2)]
    methods = [from_yaml(file.read_text()).method for file in configs]
    assert [(one.buffer, one.slowdown) for one in methods] == [
        (1, [1.0, 1.0, 1.0, 1.2]),
        (5, [1.0, 1.0, 1.0, 1.2]),
    ]

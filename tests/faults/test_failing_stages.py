"""The report of a failed run begins with the first failure, for every stage and kind of failure."""

from __future__ import annotations

import json
import os
import time

import pytest

from dglpipe.runtime import failure
from dglpipe.runtime.plan import make_plan
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.worker import run_worker
from harness.commands import PROMPT_S, TORCHRUN
from harness.configs import in_test_all, layout, make_config, small
from harness.training import train_world
from harness.worlds import WorldError, run_world

STEP = 6
"""The step of the failure, in the second epoch; checkpoints are written at steps 3 and 6."""


def trouble(how, rank, folder, step=STEP):
    """The override that makes `rank` fail at `step`."""
    args = f"{{how:{how},rank:{rank},step:{step},folder:'{folder}'}}"
    return f"method.loss={{target:harness.plug_ins.Trouble,args:{args}}}"


# ---------------------------------------------------------------- records


def run_rank(topology, store, plan, run_dir):
    os.environ["RANK"] = str(topology.rank)
    failure.PEER_PAUSE_S = 0.1  # no test reads who exits first
    run_worker(plan, RunDir(run_dir), store)


@pytest.mark.parametrize(
    ("rank", "replicas"), [in_test_all(0, 1), in_test_all(2, 1), (1, 2)], ids=str
)
def test_records_of_an_exception(rank, replicas, run_dir, tmp_path):
    """Every process writes a record; the record of the process that raised comes first."""
    stages = 3 if replicas == 1 else 2
    config = make_config(
        f"pipeline.stages={stages}",
        f"pipeline.replicas={replicas}",
        "epochs=4",
        trouble("raise", rank, tmp_path),
    )
    world = layout(stages, stages, replicas)
    RunDir(run_dir).claim("never").close()
    with pytest.raises(WorldError) as caught:
        run_world(world, run_rank, make_plan(config, world), run_dir, connected=False)
    assert caught.value.failures[0].kind == "ZeroDivisionError"
    first, *others = failure.read(RunDir(run_dir))
    assert (first.rank, first.step, first.primary) == (rank, STEP, True)
    assert first.message == "ZeroDivisionError: trouble on purpose"
    assert "plug_ins.py" in first.trace
    assert f"stage {rank}" in first.where
    assert len(others) == world.world_size - 1
    assert [(other.primary, other.time_ns > first.time_ns) for other in others] == [
        (False, True)
    ] * len(others)
    report = first.describe(RunDir(run_dir).log(rank), checkpoints=True)
    assert report.index("Traceback") == 0
    assert f"rank {rank} (stage {rank}" in report
    assert f"failed at step {STEP}: ZeroDivisionError: trouble on purpose" in report


# ---------------------------------------------------------------- commands


def status(run_dir):
    return json.loads(RunDir(run_dir).summary.read_text())["status"]


def hashes(run_dir):
    stages = json.loads(RunDir(run_dir).summary.read_text())["per_stage"]
    return [stage["weights_sha256"] for stage in stages]


@pytest.fixture(scope="module")
def whole():
    """weights_sha256 of an undisturbed run."""
    return train_world(make_config("model.dropout=0.2"), layout(2)).hashes


@pytest.mark.parametrize(("how", "rank"), [("raise", 1), in_test_all("kill", 0)])
def test_a_failed_run_reports_the_cause_and_resumes(how, rank, start, run_dir, tmp_path, whole):
    settings = small(
        trouble(how, rank, tmp_path),
        f"run_dir={run_dir}",
        "model.dropout=0.2",
        "checkpoint.every=3",
        "resume=auto",
    )
    run = start("train", *settings)
    run.wait_for((tmp_path / f"{how}_was_here").exists)
    began = time.monotonic()
    assert run.wait() == 1
    run.assert_nobody_left()
    assert time.monotonic() - began < PROMPT_S
    assert status(run_dir) == "failed"
    story = "".join(line for line in run.stderr.splitlines(True) if line[:6] != "epoch ")
    if how == "raise":
        cause = story.index("Traceback (most recent call last)")
        assert "plug_ins.py" in story[cause:]
        assert "ZeroDivisionError: trouble on purpose\nrank 1 (stage 1) failed at step 6" in story
    else:
        cause = story.index("rank 0 (stage 0) was ended by SIGKILL")
    for secondary in ("lost rank", "closed by peer", "ChildFailedError"):
        assert secondary not in story[:cause]
    last = run.stderr.rstrip().splitlines()[-1]
    assert last == f"log: {RunDir(run_dir).log(rank)}"
    # A resumed run continues from the last complete checkpoint and ends with the same weights.
    assert start("train", *settings).wait() == 0
    assert status(run_dir) == "finished"
    assert hashes(run_dir) == whole
    lines = [json.loads(line) for line in RunDir(run_dir).metrics.read_text().splitlines()]
    keys = [(line["step"], line["kind"], line["stage"]) for line in lines]
    assert len(keys) == len(set(keys)) == 2 * (2 + 3), "each once, interrupted or not"
    if how == "raise":
        return
    # As if killed between the final weights and the summary, and then once more after the end.
    RunDir(run_dir).summary.unlink()
    for words in ("", "already finished; nothing was trained\n"):
        command = start("train", *settings)
        assert command.wait() == 0
        assert words in command.stderr
        assert hashes(run_dir) == whole
    lines = [json.loads(line) for line in RunDir(run_dir).metrics.read_text().splitlines()]
    again = [(line["step"], line["kind"], line["stage"]) for line in lines]
    assert sorted(again, key=str) == sorted(keys, key=str)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("leave", "rank 1 (stage 1) exited with status 3 before the end of the run"),
        in_test_all("exit", "rank 1 (stage 1) failed at step 6: SystemExit: 0"),
    ],
)
def test_a_process_that_ends_early_is_named_at_once(how, text, start, run_dir, tmp_path):
    run = start("train", *small(trouble(how, 1, tmp_path), f"run_dir={run_dir}"))
    run.wait_for((tmp_path / f"{how}_was_here").exists)
    began = time.monotonic()
    assert run.wait() == 1
    run.assert_nobody_left()
    assert time.monotonic() - began < PROMPT_S
    assert text in run.stderr
    assert status(run_dir) == "failed"


@pytest.mark.parametrize("how", ["kill", *map(in_test_all, ("raise", "leave", "exit"))])
def test_restarts_lead_to_the_same_weights(how, start, run_dir, tmp_path, whole):
    settings = ("model.dropout=0.2", "checkpoint.every=3", "max_restarts=1")
    run = start("train", *small(trouble(how, 1, tmp_path), *settings, f"run_dir={run_dir}"))
    assert run.wait() == 0, run.stderr
    assert "restart 1 of 1" in run.stderr
    assert hashes(run_dir) == whole


@pytest.mark.slow
def test_a_stage_that_hangs_ends_the_run_after_timeout_s(start, run_dir, tmp_path):
    settings = small(trouble("hang", 1, tmp_path), f"run_dir={run_dir}", "timeout_s=3")
    run = start("train", *settings)
    run.wait_for((tmp_path / "hang_was_here").exists)
    began = time.monotonic()
    assert run.wait() == 1
    run.assert_nobody_left()
    assert 3 < time.monotonic() - began < 3 + PROMPT_S
    assert status(run_dir) == "failed"
    assert "rank 0 (stage 0) failed at step" in run.stderr
    assert "lost rank 1 (stage 1): " in run.stderr
    assert "Timed out waiting 3000ms" in run.stderr


@pytest.mark.slow
def test_under_torchrun_the_first_traceback_is_the_cause(start, run_dir, tmp_path):
    words = (*TORCHRUN, "--nproc-per-node=2", "-m", "dglpipe", "train")
    run = start(*words, *small(trouble("raise", 1, tmp_path), f"run_dir={run_dir}"))
    run.wait_for((tmp_path / "raise_was_here").exists, 100)
    began = time.monotonic()
    assert run.wait() == 1
    run.assert_nobody_left()
    assert time.monotonic() - began < PROMPT_S
    cause = run.stderr.index("Traceback (most recent call last)")
    expected = "ZeroDivisionError: trouble on purpose\nrank 1 (stage 1) failed at step 6"
    assert 0 < run.stderr.index(expected) - cause < 5000
    for secondary in ("lost rank", "closed by peer", "ChildFailedError"):
        assert secondary not in run.stderr[:cause]
    assert status(run_dir) == "failed"


@pytest.mark.parametrize(("how", "rank"), [("raise", 1), in_test_all("kill", 0)])
def test_a_failed_asynchronous_run_reports_the_cause(how, rank, start, run_dir, tmp_path):
    """Threads that wait for a neighbour do not hide the cause and do not keep a process alive."""
    words = small("method=dgl_async", "pipeline.stages=3", trouble(how, rank, tmp_path))
    run = start("train", *words, f"run_dir={run_dir}", "epochs=4")
    assert run.wait() == 1, run.stderr
    cause = f"failed at step {STEP}: ZeroDivisionError" if how == "raise" else "SIGKILL"
    assert cause in run.stderr
    assert f"rank {rank} (stage {rank})" in run.stderr
    assert status(run_dir) == "failed"
    run.assert_nobody_left()

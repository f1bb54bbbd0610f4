"""`on_failure=restart_stage`: one stage dies and comes back; the others keep their processes."""

from __future__ import annotations

import json
import os
import signal

import pytest

from dglpipe.runtime.run_dir import RunDir
from harness.commands import DGLPIPE
from harness.configs import small

STAGES = 3
SETTINGS = (
    *("method=dgl_async", f"pipeline.stages={STAGES}", "on_failure=restart_stage"),
    *("checkpoint.every=5", "log_every=1", "epochs=60", "evaluate.every=10"),
)


def pids(run_dir):
    """Stage -> process ID."""
    workers = json.loads(RunDir(run_dir).workers.read_text())
    return {worker["stages"][0]: worker["pid"] for worker in workers}


def lines_of(run_dir):
    return [json.loads(text) for text in RunDir(run_dir).metrics.read_text().splitlines()]


def steps_of(run_dir, stage):
    """Updates of a stage in a run in progress."""
    if not RunDir(run_dir).metrics.exists():
        return 0
    texts = RunDir(run_dir).metrics.read_text().split("\n")[:-1]
    lines = map(json.loads, texts)
    return max(
        (line["step"] for line in lines if (line["kind"], line["stage"]) == ("train", stage)),
        default=0,
    )


def kill(run, run_dir, stage, step):
    """Kills the process of `stage` after `step`; waits until its next process goes on."""
    run.wait_for(lambda: steps_of(run_dir, stage) >= step)
    before = pids(run_dir)
    log = RunDir(run_dir).log(stage)
    had = log.read_text().count("goes on after step")
    os.kill(before[stage], signal.SIGKILL)
    run.wait_for(lambda: log.read_text().count("goes on after step") > had)
    after = pids(run_dir)
    assert {other for other in before if before[other] != after[other]} == {stage}


def assert_finished(run, run_dir, steps):
    """Asserts that the run finishes with all results, and that lines of training are complete."""
    assert run.wait(120) == 0, run.stderr
    run.assert_nobody_left()
    summary = json.loads(RunDir(run_dir).summary.read_text())
    assert summary["status"] == "finished"
    assert all(value is not None for value in summary["test"]["accuracy"])
    assert [one["updates"] for one in summary["staleness"]] == [steps] * STAGES
    keys = [(line["kind"], line["stage"], line["step"]) for line in lines_of(run_dir)]
    assert len(keys) == len(set(keys))
    trained = {key for key in keys if key[0] == "train"}
    assert trained == {("train", j, step) for j in range(STAGES) for step in range(1, steps + 1)}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("policy", ["overwrite", "block"])
@pytest.mark.parametrize("stage", range(STAGES))
def test_a_stage_comes_back(stage, policy, start, run_dir):
    # Spawned processes: a forked one would inherit the locks of the threads of its launcher.
    words = small(*SETTINGS, f"method.policy={policy}", f"run_dir={run_dir}")
    run = start(*DGLPIPE, "train", *words)
    kill(run, run_dir, stage, 30)
    assert_finished(run, run_dir, 240)
    name = f"rank {stage} (stage {stage})"
    assert f"{name} was ended by SIGKILL" in run.stderr
    assert f"{name} starts again alone, after step " in run.stderr

"""`dglpipe train -m`: one job for each value, one after the other."""

from __future__ import annotations

import json
import os
import signal

import pytest

from dglpipe.runtime.run_dir import RunDir
from harness.configs import layout, make_config, small
from harness.training import hash_all


@pytest.mark.slow
def test_a_failing_job_does_not_stop_the_others(start, run_dir):
    run = start("train", "-m", *small(f"run_dir={run_dir}", "epochs=1", "pipeline.stages=1,99,2"))
    assert run.wait(60) == 1
    assert sorted(path.name for path in run_dir.iterdir() if path.is_dir()) == ["0", "1", "2"]
    assert "job 1: pipeline.stages: got 99; allowed: 1 to 6" in run.stderr
    assert "dglpipe: jobs [1] failed" in run.stderr.splitlines()[-1]
    for job, stages in (("0", 1), ("2", 2)):
        summary = json.loads(RunDir(run_dir / job).summary.read_text())
        assert (summary["status"], summary["stages"]) == ("finished", stages)
        (expected,) = hash_all([make_config("epochs=1")], layout(stages))
        assert [stage["weights_sha256"] for stage in summary["per_stage"]] == expected
    assert RunDir(run_dir / "1").status() is None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_sweep_continues(start, run_dir):
    """SIGKILL of all processes in the second of three jobs."""
    settings = ("epochs=20", "evaluate.every=0", "log_every=2", "checkpoint.every=2")
    words = ("-m", *small(*settings, f"run_dir={run_dir}", "seed=1,2,3", "resume=auto"))
    run = start("train", *words)
    run.wait_for_step(run_dir / "1", 4, 300)
    for pid in run.alive():
        os.kill(pid, signal.SIGKILL)
    run.wait()
    run.assert_nobody_left()
    first = RunDir(run_dir / "0").summary.stat().st_mtime_ns
    assert RunDir(run_dir / "1").status() == "unfinished"
    again = start("train", *words)
    assert again.wait(300) == 0, again.stderr
    assert again.stderr.count("already finished") == 1
    assert RunDir(run_dir / "0").summary.stat().st_mtime_ns == first
    configs = [make_config(*settings[:2], f"seed={seed}") for seed in (1, 2, 3)]
    for job, expected in enumerate(hash_all(configs, layout(2))):
        summary = json.loads(RunDir(run_dir / str(job)).summary.read_text())
        assert [stage["weights_sha256"] for stage in summary["per_stage"]] == expected


def test_a_wrong_value_in_a_list_is_reported_before_a_sweep(start, run_dir):
    run = start("train", "-m", *small(f"run_dir={run_dir}", "model=cnn6,cnn5"))
    assert run.wait(60) == 2
    assert "model: got 'cnn5'" in run.stderr
    assert not run_dir.exists()

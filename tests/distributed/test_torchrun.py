"""torchrun itself: restarts, and the death of its agent."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from dglpipe.runtime.run_dir import RunDir
from harness.commands import TORCHRUN
from harness.configs import layout, make_config, small
from harness.training import train_world

SETTINGS = ("pipeline.stages=3", "epochs=4", "model.dropout=0.2")
GONE_S = 10
"""Seconds within which workers end after their agent."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_killed_worker_is_started_again(start, run_dir):
    whole = train_world(make_config(*SETTINGS), layout(3))
    settings = small(*SETTINGS, "checkpoint.every=3", "log_every=1", f"run_dir={run_dir}")
    words = ("--standalone", "--max-restarts=2", "--nproc-per-node=3", "-m", "dglpipe", "train")
    run = start(*TORCHRUN, *words, *settings, "link.delay_ms=100")
    pids = run.wait_for_step(run_dir, 4, 150)
    os.kill(pids[1], signal.SIGKILL)
    assert run.wait(200) == 0, run.stderr
    summary = json.loads(RunDir(run_dir).summary.read_text())
    assert [stage["weights_sha256"] for stage in summary["per_stage"]] == whole.hashes


@pytest.mark.parametrize("after_s", [1, 6, 12])
def test_workers_end_with_their_agent(after_s, start, run_dir):
    """Also while they import their libraries."""
    words = ("--standalone", "--nproc-per-node=2", "-m", "dglpipe", "train")
    run = start(*TORCHRUN, *words, *small("epochs=100000", f"run_dir={run_dir}"))
    run.wait_for(lambda: len(run.children()) >= 2, 100)
    time.sleep(after_s)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.assert_nobody_left(GONE_S)

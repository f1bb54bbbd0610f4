"""SIGTERM for a worker of torchrun that runs alone in this process."""

from __future__ import annotations

import json
import signal
import threading
import time

import pytest
from torch._C._distributed_c10d import HashStore

from dglpipe.errors import PeerLostError
from dglpipe.runtime import failure, preemption, torchrun
from dglpipe.runtime.plan import make_plan
from dglpipe.runtime.preemption import Preemption
from dglpipe.runtime.run_dir import RunDir
from harness.configs import layout, make_config

LIMIT_S = 20


class Signalled:
    """Rank 0 of two, and its answer to SIGTERM."""

    def __init__(self, folder):
        self.store, self.run_dir, self.statuses = HashStore(), RunDir(folder), []
        self.run_dir.logs.mkdir(parents=True)
        plan = make_plan(make_config("pipeline.stages=2"), layout(2))
        given = signal.SIGTERM, plan, self.run_dir, 0, self.store
        self.thread = threading.Thread(target=torchrun._signalled, args=given)

    def train_to_the_end(self):
        Preemption(self.store, 0, 2, 0).close()

    def report_failure(self):
        lost = failure.record(PeerLostError("lost rank 0"), 1, "rank 1 (stage 1)", 4)
        failure.write(lost, self.run_dir)

    def status(self):
        """Its exit status, when it has ended."""
        self.thread.join(LIMIT_S)
        return self.statuses


@pytest.fixture
def worker(monkeypatch, run_dir):
    worker = Signalled(run_dir)
    monkeypatch.setattr(torchrun, "TERMINATION_PAUSE_S", 0.05)
    monkeypatch.setattr(torchrun, "ENDING_S", 0.2)
    monkeypatch.setattr(torchrun.os, "_exit", worker.statuses.append)
    yield worker
    worker.report_failure()
    worker.thread.join(LIMIT_S)


def test_a_worker_that_has_trained_ends_although_nobody_reports_a_failure(worker, capfd):
    """The other worker was killed while it wrote the results."""
    worker.train_to_the_end()
    worker.thread.start()
    assert worker.status() == [128 + signal.SIGTERM]
    assert json.loads(worker.run_dir.summary.read_text())["status"] == "failed"
    assert "stopped: signal from the launcher" in capfd.readouterr().err


def test_a_worker_that_trains_asks_for_a_checkpoint_until_a_failure_is_reported(worker, capfd):
    worker.thread.start()
    deadline = time.monotonic() + LIMIT_S
    while not preemption.is_requested(worker.store) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.4)  # longer than a worker that has trained waits
    assert preemption.is_requested(worker.store)
    assert worker.statuses == []
    worker.report_failure()
    assert worker.status() == [128 + signal.SIGTERM]
    assert "stopped: another process has failed" in capfd.readouterr().err

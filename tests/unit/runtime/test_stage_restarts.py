"""Which failures start a stage again alone, and from which checkpoint."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from torch._C._distributed_c10d import HashStore

from dglpipe.errors import (
    ConfigError,
    DamagedError,
    NonFiniteError,
    PeerLostError,
    RejoinError,
    StorageError,
)
from dglpipe.manifest import FileEntry
from dglpipe.monitoring.metrics import Reporter
from dglpipe.pipeline.stores import PrefixStore
from dglpipe.pipeline.topology import Layout
from dglpipe.runtime import failure
from dglpipe.runtime.plan import make_plan
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.stage_restarts import STARTS, StageRestarts, StageStart
from dglpipe.runtime.supervisor import Worker
from harness.configs import make_config

LAYOUT = Layout(2, 2, 1, 1)


class Attempt:
    """The restarts of an attempt without processes."""

    def __init__(self, run_dir):
        run_dir.logs.mkdir(parents=True)
        config = make_config(
            "method=dgl_async",
            "on_failure=restart_stage",
            "checkpoint.every=2",
            "pipeline.stages=2",
        )
        store = HashStore()
        self.run_dir = run_dir
        self.restarts = StageRestarts(make_plan(config, LAYOUT), run_dir, store)
        self.store = PrefixStore("dglpipe", store)

    def dies(self, error=None, rank=1):
        """How the stage starts again after the death of its process, or after `error`."""
        outcome = None
        if error is not None:
            try:
                raise error
            except Exception as caught:
                record = failure.record(caught, rank, LAYOUT.at(rank).name(), 5)
                failure.write(record, self.run_dir)
                outcome = json.loads(json.dumps({"failure": asdict(record)}))
        code = -signal.SIGKILL if error is None else 1
        return self.restarts.next(Worker(rank, SimpleNamespace(), None, outcome, code))

    def saves(self, step, generation, rank=1):
        """Reports a checkpoint, as the process of the stage does."""
        entry = FileEntry(f"stage_{rank}.safetensors", step, "0" * 64)
        Reporter(self.store, rank, generation).checkpoint(step, [entry.to_json()])
        return entry


@pytest.fixture
def attempt(tmp_path):
    made = Attempt(RunDir(tmp_path / "run"))
    yield made
    made.restarts.recorder.stop()


def test_the_first_processes_begin_at_the_newest_checkpoint(attempt):
    assert attempt.restarts.first == StageStart(0, 0, None)


def test_a_killed_stage_starts_from_its_own_checkpoint(attempt, capsys):
    assert attempt.dies() == StageStart(1, 0, None)
    entry = attempt.saves(4, 1)
    assert attempt.dies() == StageStart(2, 4, entry)
    assert attempt.dies() == StageStart(3, 4, entry)
    assert attempt.dies(rank=0) == StageStart(1, 0, None)
    told = capsys.readouterr().err
    assert "rank 1 (stage 1) was ended by SIGKILL\n" in told
    assert "rank 1 (stage 1) starts again alone, after step 4\n" in told


def test_a_stage_may_start_a_few_times_from_one_checkpoint(attempt, capsys):
    for generation in range(1, STARTS + 1):
        assert attempt.dies() == StageStart(generation, 0, None)
    assert attempt.dies() is None
    told = capsys.readouterr().err
    assert told.endswith(f"rank 1 (stage 1) has started {STARTS} times after step 0\n")
    assert attempt.dies(rank=0) is None, "the run is ending"


def test_a_new_checkpoint_allows_new_starts(attempt):
    for generation in range(1, STARTS + 1):
        assert attempt.dies().generation == generation
    attempt.saves(2, STARTS)
    assert attempt.dies().step == 2


@pytest.mark.parametrize("error", [ZeroDivisionError("oh"), StorageError("file", OSError(28, ""))])
def test_a_failure_with_a_cause_is_told(attempt, error, capsys):
    assert attempt.dies(error) == StageStart(1, 0, None)
    told = capsys.readouterr().err
    assert told.startswith("Traceback")
    assert "rank 1 (stage 1) failed at step 5: " in told
    assert not attempt.run_dir.failure(1).exists()


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("head", 1, "2"),
        NonFiniteError("NaN"),
        DamagedError("nothing is intact"),
        PeerLostError("another"),
        RejoinError("too late"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failure_that_would_repeat_or_is_a_consequence_ends_the_run(attempt, error, capsys):
    assert attempt.dies(error) is None
    assert attempt.run_dir.failure(1).exists()
    assert not capsys.readouterr().err


def test_the_processes_are_listed(attempt):
    workers = [Worker(rank, SimpleNamespace(pid=70 + rank), None) for rank in range(2)]
    attempt.restarts.write_workers(workers)
    entries = json.loads(attempt.run_dir.workers.read_text())
    assert [(one["rank"], one["stages"], one["pid"]) for one in entries] == [
        (0, [0], 70),
        (1, [1], 71),
    ]

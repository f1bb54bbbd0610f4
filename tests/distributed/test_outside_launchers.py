"""Processes started from outside: by torchrun, or by hand as the launcher of a cluster does."""

from __future__ import annotations

import json
import os
import signal
import socket

import pytest
import torch
from torchvision.io import write_jpeg

from dglpipe.config import from_yaml
from dglpipe.runtime.evaluate import evaluate_run
from dglpipe.runtime.run_dir import RunDir
from harness.commands import PROMPT_S
from harness.configs import layout, make_config, small
from harness.training import train_world

DROPOUT = "model.dropout=0.2"


@pytest.fixture(scope="module")
def plain():
    """The run of 2 stages in one process."""
    return train_world(make_config(DROPOUT), layout(2, 1))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def start_ranks(start):
    """Starts one process for each rank, each with its own overrides."""

    def start_all(*overrides):
        port = str(free_port())
        return [
            start(
                "train",
                *own,
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(len(overrides)),
                LOCAL_WORLD_SIZE=str(len(overrides)),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                TORCHELASTIC_RUN_ID="by-hand",
            )
            for rank, own in enumerate(overrides)
        ]

    return start_all


def assert_finished_like(plain, run_dir):
    """All files exist, and the weights equal the weights of the plain run."""
    files = RunDir(run_dir)
    summary = json.loads(files.summary.read_text())
    assert (summary["status"], summary["stages"], summary["processes"]) == ("finished", 2, 2)
    assert [stage["weights_sha256"] for stage in summary["per_stage"]] == plain.hashes
    assert [stage["process"] for stage in summary["per_stage"]] == [0, 1]
    workers = json.loads(files.workers.read_text())
    assert [(worker["rank"], worker["stages"]) for worker in workers] == [(0, [0]), (1, [1])]
    assert files.config.is_file()
    assert files.manifest.is_file()
    lines = [json.loads(line) for line in files.metrics.read_text().splitlines()]
    assert len(lines) == len(plain.lines)
    evaluated = evaluate_run(run_dir)
    assert evaluated.keys() == summary["test"].keys()
    for key, value in evaluated.items():
        assert value == pytest.approx(summary["test"][key]), key


def test_by_hand(start_ranks, run_dir, plain):
    """Without an agent rank 0 holds the store, and must not leave before the others."""
    settings = small(DROPOUT, f"run_dir={run_dir}")
    runs = start_ranks(settings, settings)
    assert [run.wait() for run in runs] == [0, 0], [run.stderr for run in runs]
    assert_finished_like(plain, run_dir)
    # Once more: nothing is trained, and every rank ends well.
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    again = start_ranks(*[[*settings, "resume=auto"]] * 2)
    assert [run.wait() for run in again] == [0, 0], [run.stderr for run in again]
    assert [run.stderr.count("already finished") for run in again] == [1, 0]
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


@pytest.mark.parametrize(
    ("override", "key", "values"),
    [
        ("seed=1", "seed", (0, 1)),
        # One means a chain of two processes, the other two replicas: they have no link.
        ("pipeline.replicas=2", "pipeline.processes", (2, 1)),
    ],
)
def test_ranks_with_different_settings(override, key, values, start_ranks, run_dir):
    settings = small(f"run_dir={run_dir}", "pipeline.stages=2")
    runs = start_ranks(settings, [*settings, override])
    assert [run.wait(PROMPT_S) for run in runs] == [1, 1], [run.stderr for run in runs]
    for run in runs:
        assert f"the processes disagree about {key}: " in run.stderr
        assert f"ranks [0] have {values[0]}; ranks [1] have {values[1]}" in run.stderr
    assert not run_dir.exists()


def test_an_error_is_reported_by_one_rank(start_ranks, run_dir):
    wrong = small(f"run_dir={run_dir}", "pipeline.stages=99")
    runs = start_ranks(wrong, wrong)
    assert [run.wait(PROMPT_S) for run in runs] == [2, 2]
    assert "pipeline.stages: got 99; allowed: 1 to 6" in runs[0].stderr
    assert not run_dir.exists()


@pytest.mark.slow
def test_a_used_directory_is_refused_by_all_ranks(start_ranks, run_dir):
    run_dir.mkdir()
    (run_dir / "mine").write_text("keep this")
    settings = small(f"run_dir={run_dir}")
    runs = start_ranks(settings, settings)
    assert [run.wait(PROMPT_S) for run in runs] == [2, 2]
    for run in runs:
        assert f"run_dir: {run_dir} holds mine but no run" in run.stderr
    assert [path.name for path in run_dir.iterdir()] == ["mine"]


@pytest.fixture
def long_run(start_ranks, run_dir):
    """Two ranks in the middle of an endless run."""
    settings = small(f"run_dir={run_dir}", "epochs=100000", "log_every=2")
    runs = start_ranks(settings, settings)
    runs[0].wait_for_step(run_dir, 4)
    return runs


def test_interrupted_by_its_launcher(long_run, run_dir):
    """torchrun forwards its signal to every worker."""
    for run in long_run:
        os.kill(run.pid, signal.SIGINT)
    assert [run.wait(PROMPT_S) for run in long_run] == [130, 130]
    for run in long_run:
        run.assert_nobody_left()
        assert run.stderr.splitlines()[-1].startswith("dglpipe: interrupted")
    assert RunDir(run_dir).status() == "interrupted"


def test_terminated_by_its_launcher(long_run, run_dir):
    """torchrun sends SIGTERM to its workers when the time limit of a cluster ends."""
    for run in long_run:
        os.kill(run.pid, signal.SIGTERM)
    assert [run.wait(PROMPT_S) for run in long_run] == [75, 75]
    assert "rank 0 (stage 0): preempted after step" in long_run[0].stderr
    assert RunDir(run_dir).status() == "preempted"
    assert list(RunDir(run_dir).checkpoints.glob("step_*"))


def test_a_killed_rank(long_run, run_dir):
    """torchrun then terminates the other ranks at once."""
    os.kill(long_run[1].pid, signal.SIGKILL)
    os.kill(long_run[0].pid, signal.SIGTERM)
    assert long_run[0].wait(PROMPT_S) == 143
    long_run[1].wait(PROMPT_S)
    words = long_run[0].stderr
    assert "rank 0 (stage 0) stopped at step" in words
    assert "lost rank 1" in words
    assert words.rstrip().endswith(f"log: {RunDir(run_dir).log(0)}")
    summary = json.loads(RunDir(run_dir).summary.read_text())
    assert (summary["status"], summary["backend"]) == ("failed", "gloo")
    assert summary["test"]["accuracy"] == [None, None]
    assert (summary["throughput"], summary["per_stage"]) == ({"samples_per_second": None}, [])


def test_an_error_in_the_data_leaves_no_run_directory(start_ranks, run_dir, tmp_path):
    """Found by a worker, before its first step."""
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            path = tmp_path / "images" / name / f"{number}.jpg"
            write_jpeg(torch.zeros(3, 8, 8, dtype=torch.uint8), str(path))
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2] + data[-2:])  # found only by decoding
    data = ("data=image_folder", f"data.root={tmp_path / 'images'}", "data.image_size=8")
    words = ("train", *data, "model.width=4", "batch_size=2", f"run_dir={run_dir}")
    (run,) = start_ranks(words[1:])
    assert run.wait(60) == 2
    assert "cannot be decoded as an image" in run.stderr
    assert not run_dir.exists()


@pytest.mark.slow
def test_all_ranks_use_the_timed_cut_of_rank_0(start_ranks, run_dir):
    """Separate measurements of the ranks would differ."""
    settings = small("pipeline.split=auto", "pipeline.cost=time", f"run_dir={run_dir}")
    runs = start_ranks(settings, settings)
    assert [run.wait() for run in runs] == [0, 0], [run.stderr for run in runs]
    config = from_yaml(RunDir(run_dir).config.read_text())
    assert len(config.pipeline.times["segments"]) == 6
    assert len(config.pipeline.split) == 1
    summary = json.loads(RunDir(run_dir).summary.read_text())
    hashes = [stage["weights_sha256"] for stage in summary["per_stage"]]
    assert train_world(config, layout(2, 1)).hashes == hashes

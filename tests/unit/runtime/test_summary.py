"""`summary.json` from the last test lines and the reports of all processes."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import replace

import pytest
import torch

import dglpipe
from dglpipe.config import to_yaml
from dglpipe.data import DataInfo
from dglpipe.data.batch_schedule import BatchSchedule
from dglpipe.monitoring.metrics import Line
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.topology import Layout
from dglpipe.runtime import summary as module
from dglpipe.runtime.plan import make_plan
from dglpipe.runtime.summary import Summary, git_revision, header, unfinished
from harness.configs import make_config

SCHEDULE = BatchSchedule(8, 4, 4, 4, 1, 2, None, 1)
CHAIN = Layout(3, 2, 1, 1)
"""Stages 0 and 1 in rank 0, stage 2 in rank 1."""
INFO = DataInfo("digits", 8, 4, ("a", "b"), 1, 8, 8, "f" * 32)
KEYS = {
    *("status", "method", "stages", "processes", "replicas", "backend", "device", "precision"),
    *("epochs", "steps", "batch_size", "seed", "wall_seconds", "versions", "git"),
    *("test", "throughput", "per_stage", "staleness"),
}


def plan_of(layout=CHAIN, *overrides):
    """A plan of `layout`, not of the configuration's layout, with the schedule above."""
    config = make_config(*overrides)
    own = Layout(2, 1, 1, 1)
    return replace(make_plan(config, own), layout=layout, schedule=SCHEDULE, data=INFO)


def make_summary(layout=CHAIN, *overrides):
    device = Device(torch.device("cpu"), "gloo")
    return Summary(plan_of(layout, *overrides), device)


def report(layout, rank, rate=100.0, **more):
    """The final report of a process."""
    stages = [
        {
            "stage": j,
            "segments": [f"layers.{j}"],
            "weights_sha256": f"{rank}-{j}",
            "file": {"file": f"stage_{j}.safetensors", "size": 8, "sha256": f"file {j}"},
            **more,
        }
        for j in layout.at(rank).stages
    ]
    return {"samples_per_second": rate, "stages": stages}


def reports(layout, **more):
    return [report(layout, rank, **more) for rank in range(layout.world_size)]


def line_of(stage, step, accuracy, kind="test"):
    return Line(kind, 1, step, stage, 1.0 - accuracy, accuracy)


class TestFinished:
    def test_it_has_the_names_of_the_contract(self):
        found = make_summary().finished(reports(CHAIN), 12.5)
        assert found.keys() == KEYS
        assert found["status"] == "finished"
        assert (found["stages"], found["processes"], found["replicas"]) == (3, 2, 1)
        assert (found["device"], found["backend"]) == ("cpu", "gloo")
        assert (found["steps"], found["wall_seconds"]) == (4, 12.5)
        assert found["versions"]["torch"] == torch.__version__
        json.dumps(found)

    def test_the_last_test_line_of_every_exit_counts(self):
        summary = make_summary()
        for line in (
            *(line_of(j, 2, 0.1) for j in (0, 1, 2, "ensemble")),
            line_of(1, 3, 0.99, kind="train"),
            *(line_of(j, 4, accuracy) for j, accuracy in ((2, 0.75), (0, 0.5), ("ensemble", 0.8))),
        ):
            summary.line(line)
        assert summary.test() == {
            "accuracy": [0.5, 0.1, 0.75],
            "ensemble_accuracy": 0.8,
            "loss": [0.5, 0.9, 0.25],
        }

    def test_a_stage_without_an_exit_has_null(self):
        summary = make_summary()
        summary.line(line_of(2, 4, 0.75))
        assert summary.test() == {
            "accuracy": [None, None, 0.75],
            "ensemble_accuracy": None,
            "loss": [None, None, 0.25],
        }

    def test_stages_are_in_order(self):
        layout = Layout(4, 2, 1, 1, "loop")
        found = make_summary(layout).finished(reports(layout), 1.0)
        assert [stage["stage"] for stage in found["per_stage"]] == [0, 1, 2, 3]

    def test_per_stage_has_the_stages_of_replica_0(self):
        layout = Layout(2, 2, 2, 1)
        found = make_summary(layout).finished(reports(layout), 1.0)
        assert [stage["weights_sha256"] for stage in found["per_stage"]] == ["0-0", "1-1"]

    def test_the_rate_sums_the_last_stages_of_all_replicas(self):
        layout = Layout(2, 2, 2, 1)
        finals = [report(layout, rank, rate) for rank, rate in enumerate((7.0, 30.0, 8.0, 40.0))]
        assert make_summary(layout).finished(finals, 1.0)["throughput"] == {
            "samples_per_second": 70.0
        }

    def test_a_run_too_short_for_a_rate_has_null(self):
        layout = Layout(2, 2, 2, 1)
        finals = [report(layout, rank, rate) for rank, rate in enumerate((7.0, None, 8.0, 40.0))]
        found = make_summary(layout).finished(finals, 1.0)
        assert found["throughput"] == {"samples_per_second": None}

    def test_staleness_is_a_separate_list_for_asynchronous_runs(self):
        layout = Layout(2, 2, 1, 1)
        plain = make_summary(layout).finished(reports(layout), 1.0)
        assert plain["staleness"] is None
        finals = reports(layout)
        finals[1]["stages"][0]["staleness"] = {"reads": 5}
        found = make_summary(layout).finished(finals, 1.0)
        assert found["staleness"] == [None, {"reads": 5}]
        assert all("staleness" not in stage for stage in found["per_stage"])


def test_the_manifest_lists_one_file_per_stage():
    found = make_summary().manifest(reports(CHAIN, busy_fraction=0.5))
    assert found["stages"] == [
        {
            "file": f"stage_{j}.safetensors",
            "size": 8,
            "sha256": f"file {j}",
            "stage": j,
            "segments": [f"layers.{j}"],
            "weights_sha256": f"{rank}-{j}",
        }
        for j, rank in ((0, 0), (1, 0), (2, 1))
    ]
    assert (found["dglpipe"], found["step"]) == (dglpipe.__version__, 4)
    assert found["data"]["classes"] == ("a", "b")
    text = to_yaml(plan_of().config)
    assert found["config_sha256"] == hashlib.sha256(text.encode()).hexdigest()


class TestUnfinished:
    @pytest.mark.parametrize("status", ["failed", "interrupted"])
    def test_it_has_the_same_names_with_nulls(self, status):
        found = unfinished(status, plan_of(CHAIN, "seed=3"))
        assert found.keys() == KEYS
        assert (found["status"], found["seed"]) == (status, 3)
        assert found["test"] == {
            "accuracy": [None] * 3,
            "ensemble_accuracy": None,
            "loss": [None] * 3,
        }
        assert found["throughput"] == {"samples_per_second": None}
        assert (found["per_stage"], found["steps"], found["wall_seconds"]) == ([], None, None)

    def test_the_summary_has_the_resolved_backend(self):
        plan = replace(plan_of(), backend="nccl")
        assert unfinished("failed", plan)["backend"] == "nccl"


class TestGit:
    @pytest.fixture
    def answer(self, monkeypatch):
        """Replaces the answer of git."""

        def prepare(answer):
            def run(command, **_):
                if isinstance(answer, Exception):
                    raise answer
                return subprocess.CompletedProcess(command, 0, answer)

            monkeypatch.setattr(module.subprocess, "run", run)
            monkeypatch.setattr(module.Path, "exists", lambda _: True)

        return prepare

    def test_the_commit_is_a_line(self, answer):
        answer("0123abc-dirty\n")
        assert git_revision() == "0123abc-dirty"
        assert header("failed", plan_of())["git"] == "0123abc-dirty"

    @pytest.mark.parametrize(
        "error",
        [
            FileNotFoundError("git"),
            subprocess.CalledProcessError(128, "git"),
            subprocess.TimeoutExpired("git", 10),
        ],
    )
    def test_without_git_there_is_none(self, answer, error):
        answer(error)
        assert git_revision() is None

"""Every command as users start it: a process of its own, whose workers are spawned.

Other tests fork from a process that has loaded torch, which hides errors of imports, pickling and
environment in a new process. The tests of README.md, of launch/ and of failing stages start a real
`torchrun`.
"""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

import dglpipe
from dglpipe.runtime.run_dir import RunDir
from harness.commands import DGLPIPE
from harness.configs import layout, make_config, small
from harness.training import hash_all

SHORT = ("max_steps=2",)
WAIT_S = 250
"""Every process loads torch, on a machine that may be busy."""
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def dgl(start):
    """Runs `dglpipe` in a real process; returns the finished process."""

    def run(*words, expected=0):
        command = start(*DGLPIPE, *words)
        assert command.wait(WAIT_S) == expected, command.stderr
        return command

    return run


def read(path):
    return json.loads(path.read_text())


def test_version(dgl):
    assert dgl("--version").stdout == f"dglpipe {dglpipe.__version__}\n"


def test_unknown_command(dgl):
    assert "did you mean train?" in dgl("trian", expected=2).stderr


@pytest.mark.slow
def test_models(dgl):
    assert "resnet110_cifar" in dgl("models").stdout


@pytest.mark.slow
def test_plan(dgl, tmp_path):
    path = tmp_path / "plan.json"
    assert "stage 1" in dgl("plan", *small(), f"output={path}").stdout
    assert [stage["stage"] for stage in read(path)["per_stage"]] == [0, 1]


@pytest.mark.slow
def test_train_evaluate_export(dgl, tmp_path):
    """The name of the run directory needs quotes; forked workers reach equal weights."""
    run_dir = tmp_path / "a=b (c)"
    command = dgl("train", *small(*SHORT, f"run_dir={run_dir}"))
    assert str(run_dir) in command.stdout
    summary = read(RunDir(run_dir).summary)
    (expected,) = hash_all([make_config(*SHORT)], layout(2))
    assert [stage["weights_sha256"] for stage in summary["per_stage"]] == expected
    workers = read(RunDir(run_dir).workers)
    assert len({command.pid, *(worker["pid"] for worker in workers)}) == 3
    dgl("evaluate", f"run={run_dir}")
    evaluated = read(RunDir(run_dir).evaluation)
    assert evaluated["accuracy"] == pytest.approx(summary["test"]["accuracy"])
    output = tmp_path / "network.safetensors"
    dgl("export", f"run={run_dir}", f"output={output}")
    parts = [load_file(RunDir(run_dir).final(j)) for j in range(2)]
    keys = {key for part in parts for key in part if not key.startswith("head.")}
    assert load_file(output).keys() == keys


@pytest.mark.slow
def test_sweep(dgl, run_dir):
    dgl("train", "-m", *small(*SHORT, "pipeline.processes=1", "seed=1,2", f"run_dir={run_dir}"))
    summaries = [read(RunDir(run_dir / job).summary) for job in ("0", "1")]
    assert [(one["status"], one["seed"]) for one in summaries] == [("finished", 1), ("finished", 2)]

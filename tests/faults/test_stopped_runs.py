"""A run that is stopped from outside: Ctrl-C, a killed launcher, a killed worker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time

import pytest

from dglpipe.runtime.run_dir import RunDir
from harness.commands import DGLPIPE, PROMPT_S
from harness.configs import in_test_all, make_config, small
from harness.training import train_world

LONG = ("epochs=100000", "evaluate.every=0", "log_every=2", "checkpoint.every=2")


def status(run_dir):
    return RunDir(run_dir).status()


def last_words(run):
    """The lines of stderr that are not progress."""
    return [line for line in run.stderr.splitlines() if not line.startswith("epoch ")]


def test_a_wrong_setting_starts_nothing(start, run_dir):
    run = start("train", *small(f"run_dir={run_dir}", "pipeline.stages=99"))
    assert run.wait() == 2
    assert run.stderr.startswith("dglpipe: pipeline.stages: got 99; allowed: 1 to 6")
    assert not run_dir.exists()


def send_to_group(run):
    """As a terminal does on Ctrl-C."""
    os.killpg(run.pid, signal.SIGINT)


def send_to_launcher(run):
    os.kill(run.pid, signal.SIGINT)


def send_five_times(run):
    """As an impatient user does."""
    with contextlib.suppress(ProcessLookupError):  # it may end before the fifth
        for _ in range(5):
            os.killpg(run.pid, signal.SIGINT)
            time.sleep(0.01)


def terminate_twice(run):
    """By two signals, because the system may merge two of the same number."""
    os.kill(run.pid, signal.SIGUSR1)
    os.kill(run.pid, signal.SIGTERM)


@pytest.mark.parametrize(
    "interrupt",
    [send_five_times, *map(in_test_all, (send_to_group, send_to_launcher, terminate_twice))],
)
def test_interrupted(interrupt, start, run_dir):
    run = start("train", *small(*LONG, f"run_dir={run_dir}"))
    run.wait_for_step(run_dir, 4)
    began = time.monotonic()
    interrupt(run)
    assert run.wait() == 130
    run.assert_nobody_left()
    assert time.monotonic() - began < PROMPT_S
    assert status(run_dir) == "interrupted"
    # Of two signals at once, either may come second.
    names = ("SIGTERM", "SIGUSR1") if interrupt is terminate_twice else ("SIGINT",)
    assert last_words(run) in [[f"dglpipe: interrupted {name}"] for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.5, 1.5, 3, 6])
def test_interrupted_during_the_start(pause, start, run_dir):
    """Five signals while launcher or workers import their libraries: no traceback."""
    run = start(*DGLPIPE, "train", *small(*LONG, f"run_dir={run_dir}"))
    time.sleep(pause)
    send_five_times(run)
    assert run.wait() == 130, run.stderr
    run.assert_nobody_left()
    assert "Traceback" not in run.stderr


CTRL_C = "os.kill(os.getpid(), signal.SIGINT)"
IMPORTS = {
    "swallows": f"with contextlib.suppress(KeyboardInterrupt):\n    {CTRL_C}\n",
    "compiles code": f'exec("{CTRL_C}")\n',
}
"""Modules that receive Ctrl-C while they are imported. One goes on. One runs a compiled text, as
dataclasses do: after that, `python -m` would end itself by SIGINT."""


@pytest.mark.slow
@pytest.mark.parametrize("body", IMPORTS.values(), ids=IMPORTS)
def test_interrupted_inside_an_import(body, start, run_dir, tmp_path):
    code = "import contextlib, os, signal\nfrom harness.plug_ins import plain_network\n" + body
    folder = tmp_path / "command_0"  # where the command starts
    folder.mkdir()
    (folder / "interrupting.py").write_text(code)
    network = ("model=custom", "model.target=interrupting:plain_network")
    run = start(*DGLPIPE, "train", *network, "epochs=2", "log_every=1", f"run_dir={run_dir}")
    assert run.wait() == 130, run.stderr
    assert last_words(run) in [["dglpipe: interrupted"], ["dglpipe: interrupted SIGINT"]]
    assert not RunDir(run_dir).metrics.exists()


PREEMPTED_METHODS = {
    "dgl": ["pipeline.stages=3"],
    "in one process": ["pipeline.stages=3", "pipeline.processes=1"],
    "replicas": ["pipeline.replicas=2"],
    "sequential": ["method=sequential"],
    "simulated": ["method=dgl_async", "method.simulate=true"],
    "1f1b": ["method=backprop", "pipeline.stages=2", "method.schedule=1f1b"],
}


@pytest.mark.parametrize(
    ("method", "number"),
    [
        ("dgl", "SIGTERM"),
        *(in_test_all(name, "SIGUSR1") for name in PREEMPTED_METHODS if name != "dgl"),
    ],
)
def test_a_preempted_run_goes_on_to_the_same_weights(method, number, start, run_dir):
    settings = [*PREEMPTED_METHODS[method], "model.dropout=0.2", "epochs=6", "log_every=1"]
    whole = train_world(make_config(*settings))
    command = ("train", *small(*settings, f"run_dir={run_dir}", "resume=auto"))
    run = start(*command)
    run.wait_for_step(run_dir, 3)
    # A cluster sends the signal to all processes of a job.
    os.killpg(run.pid, signal.Signals[number])
    assert run.wait() == 75, run.stderr
    run.assert_nobody_left()
    assert status(run_dir) == "preempted"
    assert "preempted after step" in last_words(run)[-1]
    again = start(*command)
    assert again.wait() == 0, again.stderr
    summary = json.loads(RunDir(run_dir).summary.read_text())
    assert [stage["weights_sha256"] for stage in summary["per_stage"]] == whole.hashes


@pytest.mark.slow
def test_workers_exit_when_their_launcher_is_killed(start, run_dir):
    """Even while they log nothing: an epoch of 718 steps, logged at its end."""
    settings = small(*LONG, "log_every=100000", "batch_size=2", f"run_dir={run_dir}")
    run = start(*DGLPIPE, "train", *settings)
    run.wait_for(lambda: list(RunDir(run_dir).checkpoints.glob("step_*/manifest.json")))
    pids = [worker["pid"] for worker in json.loads(RunDir(run_dir).workers.read_text())]
    assert set(pids) < set(run.alive())
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.assert_nobody_left()
    # No process is left that could write a summary or hold the lock of the directory.
    assert status(run_dir) == "unfinished"
    RunDir(run_dir).check("auto")


@pytest.mark.parametrize(("rank", "how"), [in_test_all(0, "SIGTERM"), (1, "SIGKILL")])
def test_a_killed_worker(rank, how, start, run_dir):
    run = start("train", *small(*LONG, f"run_dir={run_dir}"))
    pids = run.wait_for_step(run_dir, 4)
    began = time.monotonic()
    os.kill(pids[rank], signal.Signals[how])
    assert run.wait() == 1
    run.assert_nobody_left()
    assert time.monotonic() - began < PROMPT_S
    assert status(run_dir) == "failed"
    words = last_words(run)
    assert words[0].startswith(f"rank {rank} (stage {rank}) was ended by {how}")
    assert "resume=auto" in words[-2]
    assert words[-1] == f"log: {RunDir(run_dir).log(rank)}"


@pytest.mark.slow
def test_a_resumed_run_appends_to_its_metrics(start, run_dir):
    """Interrupted and resumed twice: every step is logged once."""
    settings = small(*LONG, f"run_dir={run_dir}", "resume=auto")
    steps = 4
    for _ in range(2):
        run = start("train", *settings)
        run.wait_for_step(run_dir, steps)
        os.kill(run.pid, signal.SIGINT)
        assert run.wait() == 130
        lines = [json.loads(line) for line in RunDir(run_dir).metrics.read_text().splitlines()]
        logged = [line["step"] for line in lines if line["stage"] == 0]
        assert logged == sorted(set(logged))
        assert set(logged) >= {2, 4}
        steps = logged[-1] + 10

"""Random kills: their plan, their moments, and what counts as right."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter

import pytest

from benchmarks.faults import kills
from benchmarks.faults.kills import Bench, Command, Outcome, Trial, Watch
from dglpipe.files import write_json
from dglpipe.runtime.run_dir import RunDir

STEPS = range(3, 25, 3)


def outcome(hashes=("a", "b")):
    lines = {("train", "0", step): (1, 0.5, 0.5, 0.1) for step in STEPS}
    tests = {("test", "0", step): (1, 0.5, 0.5, None) for step in (12, 24)}
    return Outcome(hashes, lines | tests, 0)


def test_the_trials_cover_every_case_and_phase():
    trials = kills.plan_trials(60, 20, random.Random(0))
    assert len(trials) == 60
    assert Counter(trial.restarts for trial in trials) == {True: 20, False: 40}
    plain = [trial for trial in trials if not trial.restarts]
    assert {(trial.case, trial.phase) for trial in plain} == {
        (case, phase) for case in kills.CASES for phase in kills.PHASES
    }
    assert {trial.victim for trial in plain} == set(kills.VICTIMS)
    again = [trial for trial in trials if trial.restarts]
    assert {trial.case for trial in again} == set(kills.CASES) - {"torchrun"}
    assert {trial.victim for trial in again} == {"worker"}
    assert {trial.phase for trial in again} == set(kills.PHASES)


def test_a_stopped_script_continues_after_its_last_trial(tmp_path):
    assert kills.earlier(None) == kills.earlier(f"{tmp_path / 'none'}") == []
    trials = kills.plan_trials(6, 2, random.Random(0))
    write_json(tmp_path / "results", {"trials": [vars(trial) for trial in trials[:4]]})
    assert kills.earlier(f"{tmp_path / 'results'}") == trials[:4]


@pytest.mark.parametrize("phase", kills.PHASES)
def test_a_moment_comes_with_a_file(phase, tmp_path):
    run_dir = RunDir(tmp_path)
    when = kills.moment(phase, outcome(), run_dir, random.Random(1))
    assert not when.has_come()
    for folder in (run_dir.logs, run_dir.manifest.parent):
        folder.mkdir()
    for file in (run_dir.config, run_dir.log(0), run_dir.workers, run_dir.final(0)):
        file.touch()
    for file in (run_dir.manifest, run_dir.summary):
        file.touch()
    for step in STEPS:
        (run_dir.checkpoints / f"step_{step // 3 * 7:08d}").mkdir(parents=True)
    lines = [
        {"kind": kind, "epoch": 1, "step": step, "stage": 0}
        for step in STEPS
        for kind in ("train", "test")
    ]
    run_dir.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert when.has_come()


def test_a_watch_reads_only_whole_lines(tmp_path):
    run_dir = RunDir(tmp_path)
    watch = Watch(run_dir, "train", 6)
    assert not watch()
    with run_dir.metrics.open("a", buffering=1) as file:
        file.write('{"kind": "train", "epoch": 1, "step": 60, "stage": 0}\n')
        file.write('{"kind": "test", "epoch": 1, "step": 6, "stage": 0}\n')
        file.write('{"kind": "train", "epoch": 1, "step": 6,')
        file.flush()
        assert not watch()
        file.write(' "stage": 0}\n')
        assert watch()


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda lines: lines, {}),
        (lambda lines: lines[1:], {"missing": 1}),
        (lambda lines: [*lines, lines[0]], {"repeated": 1}),
        (lambda lines: [*lines, {**lines[0], "step": 4}], {"repeated": 1}),
        (lambda lines: [{**lines[0], "loss": 0.25}, *lines[1:]], {"different": 1}),
        (lambda lines: [{**lines[0], "samples_per_second": 9.0}, *lines[1:]], {}),
    ],
)
def test_lines_are_compared(tmp_path, change, wrong):
    run_dir = RunDir(tmp_path)
    lines = [
        {"kind": "train", "epoch": 1, "step": step, "stage": 0, "loss": 0.5, "accuracy": 0.5}
        for step in STEPS
    ]
    found = change([{**line, "learning_rate": 0.1} for line in lines])
    run_dir.metrics.write_text("".join(json.dumps(line) + "\n" for line in found))
    stages = [{"weights_sha256": name} for name in "ab"]
    write_json(run_dir.summary, {"status": "finished", "per_stage": stages})
    trial = Trial("dgl", "steady", "worker", False, finished=True)
    whole = {key: value for key, value in outcome().lines.items() if key[0] == "train"}
    kills._compare(trial, Outcome(("a", "b"), whole, 0), kills.read_outcome(tmp_path))
    expected = {"missing": 0, "repeated": 0, "different": 0} | wrong
    assert {key: getattr(trial, key) for key in expected} == expected
    assert trial.is_right is not bool(wrong)
    assert kills.count([trial])["right"] == trial.is_right


def test_processes_are_found_by_their_mark(tmp_path):
    """Also those whose parent has ended and those in a session of their own."""
    code = "import subprocess, sys; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    command = Command([sys.executable, "-c", code], tmp_path / "output")
    assert command.wait(30) == 0
    (left,) = command.alive()
    assert left != command.pid
    assert command.end() == [left]
    assert command.alive() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("case", "phase", "victim"),
    [
        ("dgl", "start-up", "session"),
        ("dgl", "checkpoint", "worker"),
        ("dgl", "end", "launcher"),
        ("torchrun", "steady", "launcher"),
    ],
)
def test_a_kill(case, phase, victim, tmp_path):
    bench = Bench(tmp_path, ["epochs=3", "model.width=4"])
    trial = Trial(case, phase, victim, False)
    bench.run(trial, random.Random(3))
    assert trial.is_right, trial

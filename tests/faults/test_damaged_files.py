"""Damaged files of a run are reported by name; a run continues from an older checkpoint.

A small version of benchmarks/faults/damage.py.
"""

from __future__ import annotations

import pytest

from benchmarks.faults import damage
from dglpipe.runtime.run_dir import RunDir
from harness.configs import in_test_all, layout, small
from harness.worlds import run_world

SOME = {
    "newest checkpoint: bit flipped": "older checkpoint",
    "newest checkpoint: stages swapped": "older checkpoint",
    "newest manifest: hash changed": "older checkpoint",
    "all checkpoints: truncated": "refused",
    "metrics.jsonl: garbage": "told",
    "final weights: another run's": "refused",
    "final weights: zeroed": "refused",
    "final manifest: name changed": "refused",
    "final manifest: hash changed": "refused",
    "config.yaml: another run's": "refused",
}
"""Damage -> outcome."""


def trials(topology, store, copies, only):
    """In a process of its own: a run trains in it."""
    del topology, store
    return damage.measure(copies, 0, only)


@pytest.mark.parametrize("copies", [4, *map(in_test_all, (11, 120))])
@pytest.mark.timeout(300)
def test_no_damage_is_passed_over_in_silence(copies):
    only = {4: list(SOME)[:7:2], 11: list(SOME), 120: []}[copies]
    (found,) = run_world(layout(1), trials, copies, only, connected=False, deadline_s=1000)
    bad = [trial for trial in found if trial.outcome in damage.BAD]
    assert bad == []
    assert {trial.outcome for trial in found} >= {"older checkpoint", "refused"}
    for trial in found:
        assert trial.outcome == SOME.get(trial.damage, trial.outcome)
        if trial.outcome in ("refused", "older checkpoint"):
            assert trial.file.rpartition("/")[2] in trial.message


@pytest.mark.slow
def test_a_command_without_an_intact_checkpoint_has_status_1(start, run_dir):
    words = small("checkpoint.every=3", "resume=auto", f"run_dir={run_dir}")
    assert start("train", *words).wait() == 0
    files = RunDir(run_dir)
    files.summary.unlink()
    damaged = sorted(files.checkpoints.glob("step_*/stage_1.safetensors"))
    assert len(damaged) == 2
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    run = start("train", *words)
    assert run.wait() == 1
    assert "Traceback" not in run.stderr
    for path in damaged:
        assert f"  {path}: sha256: got" in run.stderr
    assert f"delete {files.checkpoints} or give another run_dir" in run.stderr
    assert len(list(files.checkpoints.glob("step_*"))) == 2, "nothing was deleted"

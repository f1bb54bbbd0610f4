"""Damaged files of a run are reported by name; a run continues from an older checkpoint.

A small version of benchmarks/faults/damage.py.
"""

from __future__ import annotations

import pytest

from benchmarks.faults import damage
from harness.configs import in_test_all, layout
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


@pytest.mark.parametrize("copies", [11, in_test_all(120)])
def test_no_damage_is_passed_over_in_silence(copies):
    only = list(SOME) if copies == 11 else []
    (found,) = run_world(layout(1), trials, copies, only, connected=False, deadline_s=300)
    bad = [trial for trial in found if trial.outcome in damage.BAD]
    assert bad == []
    assert {trial.outcome for trial in found} >= {"older checkpoint", "refused"}
    for trial in found:
        assert trial.outcome == SOME.get(trial.damage, trial.outcome)
        if trial.outcome in ("refused", "older checkpoint"):
            assert trial.file.rpartition("/")[2] in trial.message

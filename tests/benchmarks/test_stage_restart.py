"""One stage that is killed: what the script reads from a run in progress, and its table."""

from __future__ import annotations

import json
from dataclasses import replace

from benchmarks.faults import stage_restart
from benchmarks.faults.stage_restart import Outage
from dglpipe.runtime.run_dir import RunDir

ONE = Outage(0, 1, 12, 8.0, {0: 100, 2: 300, 3: 200}, True, [0.9, 0.91, 0.92, 0.93], 0.95)


def test_updates_are_read_from_whole_lines(tmp_path):
    run_dir = RunDir(tmp_path)
    assert stage_restart.updates_of(run_dir) == {}
    lines = [("train", 1, 5), ("train", 0, 3), ("train", 1, 6), ("test", 0, 9)]
    texts = [
        json.dumps({"kind": kind, "stage": stage, "step": step}) for kind, stage, step in lines
    ]
    run_dir.metrics.write_text("\n".join([*texts, '{"kind": "train", "stage": 2']))
    assert stage_restart.updates_of(run_dir) == {0: 3, 1: 6}


def test_the_table_compares_the_last_exit():
    outages = [ONE, replace(ONE, seconds=10.0, updates={0: 50}, accuracy=[0.8, 0.94])]
    whole = [{"accuracy": [0.9, 0.95]}, {"accuracy": [0.9, 0.97]}, {"accuracy": [0.9, 0.94]}]
    assert stage_restart.closing(whole, outages) == [
        "seconds until the stage goes on: 9.0 (8.0-10.0)",
        "updates of each other stage meanwhile: 150 (50-300)",
        "last exit, undisturbed: 95.00 (94.00-97.00) %",
        "last exit, one stage killed: 93.50 (93.00-94.00) %",
        "difference of the medians: -1.50 points",
    ]


def test_a_row_tells_when_others_were_started_again():
    assert "others kept their processes" in stage_restart.row(ONE)
    assert "OTHERS WERE STARTED AGAIN" in stage_restart.row(replace(ONE, stayed=False))

"""The comparisons of summaries, metrics and times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext

import compare_checkouts
import compare_startup
import compare_throughput
import pytest
from checkouts import Checkout, CheckoutError
from compare_checkouts import RUNS, Row, compare_run, differing_stages, weights_by_stage
from comparison import alternate, compare, show, spread, store
from first_step import SessionMemory, has_first_step, measure, peak_of, session_of


def summary(*hashes, status="finished"):
    stages = [{"stage": j, "weights_sha256": one} for j, one in enumerate(hashes)]
    return {"status": status, "per_stage": stages}


class FakeTraining:
    def __init__(self, prepared):
        self._prepared = prepared

    def summary(self):
        if isinstance(self._prepared, Exception):
            raise self._prepared
        return self._prepared


class FakeCheckout(Checkout):
    """Trains nothing and returns a prepared summary."""

    def training(self, overrides, run_dir):
        return nullcontext(FakeTraining(summaries[self.label]))


summaries = {}


@pytest.fixture
def pair(tmp_path):
    return [FakeCheckout(label, tmp_path, tmp_path) for label in ("before", "after")]


def test_there_are_14_runs_and_their_batches_are_uneven():
    assert len(RUNS) == 14
    assert 1437 % compare_checkouts.BATCH_SIZE


def test_stages_that_differ_or_are_missing():
    one, other = (weights_by_stage(summary(*hashes)) for hashes in ("abc", "axc"))
    assert differing_stages(one, one) == []
    assert differing_stages(one, other) == [1]
    assert differing_stages(one, weights_by_stage(summary("a", "b"))) == [2]


@pytest.mark.parametrize("bad", [summary(), summary("a", status="failed")])
def test_unfinished_summary_has_no_weights(bad):
    with pytest.raises(ValueError, match=r"summary\.json: "):
        weights_by_stage(bad)


def test_rows_of_equal_different_and_failed_runs(pair):
    summaries.update(before=summary("a", "b"), after=summary("a", "b"))
    row = compare_run("k2", pair)
    assert (row.is_equal, str(row)) == (True, "k2               equal")
    summaries["after"] = summary("x", "y")
    row = compare_run("k2", pair)
    assert (row.is_equal, row.differ) == (False, [0, 1])
    assert str(row) == "k2               differs: stages 0, 1"
    summaries["after"] = CheckoutError("after: train: status 1")
    row = compare_run("k2", pair)
    assert not row.is_equal
    assert str(row) == "k2               failed\nafter: train: status 1"


@pytest.mark.parametrize(("differ", "status"), [([], 0), ([1], 1)])
def test_exit_status_of_the_weights(monkeypatch, tmp_path, pair, capsys, differ, status):
    output = tmp_path / "out.json"
    words = ["compare_checkouts.py", "a", "b", "--only", "k2", "k3", "--output", str(output)]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(compare_checkouts, "open_checkouts", lambda _: nullcontext(pair))
    monkeypatch.setattr(compare_checkouts, "compare_run", lambda name, _: Row(name, [], differ, {}))
    with pytest.raises(SystemExit) as stopped:
        compare_checkouts.main()
    assert stopped.value.code == status
    assert capsys.readouterr().out.splitlines()[-1] == f"{2 if not differ else 0} of 2 runs equal"
    assert [row["name"] for row in json.loads(output.read_text())["rows"]] == ["k2", "k3"]


def test_stored_results_name_no_folder(tmp_path, pair, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/a/folder/tool.py", str(tmp_path)])
    store(None, pair, rows=[])
    store(tmp_path / "out.json", pair, rows=[1])
    text = (tmp_path / "out.json").read_text()
    assert json.loads(text)["revisions"] == {"before": None, "after": None}
    assert json.loads(text)["rows"] == [1]
    assert str(tmp_path) not in text and "/a/folder" not in text


def test_rounds_alternate(pair):
    labels = [(number, checkout.label[0]) for number, checkout in alternate(pair, 3)]
    assert labels == [(0, "b"), (0, "a"), (1, "a"), (1, "b"), (2, "b"), (2, "a")]


def test_ratios_are_taken_round_by_round():
    found = compare({"before": [1.0, 2.0, 4.0], "after": [1.5, 2.0, 2.0]})
    assert found["after / before"] == {"median": 1.0, "min": 0.5, "max": 1.5}
    assert found["before"] == spread([4.0, 2.0, 1.0])
    columns = "2.00 (1.00-4.00)", "2.00 (1.50-2.00)", "1.000 (0.500-1.500)"
    assert show("name", found).split("  ")[0] == "name"
    assert [column.strip() for column in show("", found).split("  ") if column.strip()] == [
        *columns
    ]


def test_ratios_of_commands():
    seconds = dict.fromkeys(compare_startup.COMMANDS, 2.0)
    seconds[compare_startup.HELP] = 3.0
    assert list(compare_startup.ratios(seconds).values()) == [1.0, 1.0, 1.5]


def test_training_split_is_as_long_as_all_steps():
    words = compare_throughput.overrides("narrow")
    assert f"data.samples={128 * 120}" in words
    assert "max_steps=120" in words


def test_first_step_is_the_step_of_the_last_stage(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    assert not has_first_step(metrics, 2)
    line = {"kind": "train", "step": 1, "stage": 0}
    metrics.write_text(json.dumps(line) + "\n")
    assert not has_first_step(metrics, 2)
    last = json.dumps({**line, "stage": 1})
    metrics.write_text(f"{json.dumps(line)}\n{last}")
    assert not has_first_step(metrics, 2), "the line is not complete"
    metrics.write_text(f"{json.dumps(line)}\n{last}\n")
    assert has_first_step(metrics, 2)


def test_lines_of_proc():
    assert session_of("12 (a) b) S 1 12 7 0 -1") == 7
    assert peak_of("VmPeak:\t 9 kB\nVmHWM:\t 3 kB\n") == 3072
    assert peak_of("State: Z\n") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_of_a_session():
    memory = SessionMemory(os.getsid(0))
    memory.look()
    assert memory.peaks[os.getpid()] > 2**20
    assert SessionMemory(0).peaks == {}


PROGRAM = """import json, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start jobs that ignore it
words = dict(word.split("=") for word in sys.argv[2:])
assert words["log_every"] == "1"
import pathlib
run_dir = pathlib.Path(words["run_dir"])
run_dir.mkdir()
if "fail" in words:
    sys.exit("no such key")
time.sleep(0.2)
line = {"kind": "train", "step": 1, "stage": 1}
(run_dir / "metrics.jsonl").write_text(json.dumps(line) + chr(10))
time.sleep(100)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_measurement_ends_with_the_first_step(tmp_path):
    checkout = Checkout("before", tmp_path, tmp_path)
    (tmp_path / "dglpipe").mkdir()
    (tmp_path / "dglpipe" / "__init__.py").write_text("")
    (tmp_path / "dglpipe" / "__main__.py").write_text(PROGRAM)
    step = measure(checkout, ["a=b"], 2, tmp_path / "run")
    assert 0.2 <= step.seconds < 50
    assert len(step.peaks) == 1 and step.peaks[0] > 2**20
    with pytest.raises(
        CheckoutError, match=r"before: train: status 1 before the first step\nno such key"
    ):
        measure(checkout, ["fail=1"], 2, tmp_path / "other")


def test_failed_command_stops_the_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_startup, "COMMANDS", {"bad": ["-c", "raise SystemExit(3)"]})
    monkeypatch.setattr(compare_startup, "REPEATS", {"bad": 1})
    with pytest.raises(CheckoutError, match=r"before: .*status 3"):
        compare_startup.time_commands([Checkout("before", tmp_path, tmp_path)], 1)


@pytest.mark.parametrize("tool", [compare_checkouts, compare_startup, compare_throughput])
def test_help(tool):
    file = {"checkouts": compare_checkouts, "startup": compare_startup}.get(
        tool, compare_throughput
    )
    command = [sys.executable, file.__file__, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "BEFORE AFTER" in done.stdout

"""Rounds, ratios and result files of all benchmarks."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import common


def test_every_round_starts_with_the_next_way():
    calls = []
    ways = {name: lambda name=name: calls.append(name) or len(calls) for name in "abc"}
    assert common.rounds(ways, 3) == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}
    assert "".join(calls) == "abcbcacab"
    calls.clear()
    common.rounds(ways, 2, rotate=False)
    assert "".join(calls) == "abcabc"


def test_ratios_are_taken_round_by_round():
    ratios = common.ratios([1.0, 9.0, 3.0], [1.0, 3.0, 2.0])
    assert common.spread(ratios) == "1.50 (1.00-3.00)"
    assert common.spread([2.0, 1.0, float("inf")], 1) == "2.0 (1.0-inf)"
    with pytest.raises(ValueError, match="zip"):
        common.ratios([1.0], [])


def test_a_baseline_is_judged_by_its_median():
    assert common.reaches_bound([0.5, 0.9, 2.0])
    assert not common.reaches_bound([0.89, 0.89, 2.0])


def test_a_failed_command_is_reported_with_its_stderr():
    with pytest.raises(RuntimeError, match=r"python.* -c .*: status 1\nno such key"):
        common.run([sys.executable, "-c", "raise SystemExit('no such key')"])


def test_a_result_file_has_few_lines_and_the_same_values(tmp_path):
    file = tmp_path / "results.json"
    runs = [{"rates": [0.1 * at for at in range(30)], "name": f"run {at}"} for at in range(3)]
    common.store(str(file), rows=runs, tried={4: 0.5}, best=float("nan"))
    text = file.read_text()
    found = json.loads(text)
    assert (found["rows"], found["tried"], found["best"]) == (runs, {"4": 0.5}, None)
    assert list(found)[:2] == ["command", "environment"]
    assert len(text.splitlines()) < 30
    assert text == common.to_json(found) + "\n"

"""The closing table of a run."""

from __future__ import annotations

import pytest

from dglpipe.runtime import closing_table as closing_table_module
from dglpipe.runtime.closing_table import closing_table

STAGE = {
    "stage": 0,
    "process": 0,
    "segments": ["a", "b"],
    "parameters": 12345,
    "busy_fraction": 0.9,
    "wait_input_fraction": None,
    "wait_output_fraction": 0.05,
    "loading_fraction": 0.01,
}


def summary_of(stage):
    return {
        "method": "dgl",
        "stages": 1,
        "per_stage": [stage],
        "test": {"accuracy": [0.9875], "ensemble_accuracy": 0.99},
        "throughput": {"samples_per_second": 1234.5},
    }


def test_the_closing_table(capsys, tmp_path):
    closing_table(summary_of(STAGE), tmp_path)
    text = capsys.readouterr().out
    for part in ("12,345", "98.75%", "90.0%", "5.0%", "99.00%", "1234", str(tmp_path)):
        assert part in text
    assert "loading images" not in text


SLOW = {**STAGE, "loading_fraction": 0.31, "wait_output_fraction": 0.01}


@pytest.mark.parametrize(
    ("decoders", "stages", "help_"),
    [
        (1, 1, ": raise data.workers (1 now)\n"),
        (0, 1, ": raise data.workers (0 now)\n"),
        (2, 1, ": 2 processes (data.workers) already use all cores of this machine\n"),
        (None, 2, ", in its own process: give stage 0 fewer segments (pipeline.split)\n"),
        (None, 1, ", in its own process\n"),
    ],
)
def test_slow_loading_is_reported_with_a_remedy(
    decoders, stages, help_, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(closing_table_module, "cores", lambda: 2)
    summary = summary_of(SLOW)
    if stages == 2:
        summary["per_stage"].append({**STAGE, "stage": 1, "process": 1})
        summary["test"]["accuracy"] *= 2
    closing_table(summary, tmp_path, decoders)
    text = capsys.readouterr().out
    assert f"loading images took 31% of the time of stage 0, which feeds all stages{help_}" in text
    assert "image_size" not in text, "a smaller image size is not a remedy"


@pytest.mark.parametrize(
    "changes",
    [
        {"loading_fraction": None},
        {"loading_fraction": 0.1},
        {"loading_fraction": 0.15, "wait_output_fraction": 0.5},
    ],
)
def test_loading_that_is_not_the_bottleneck_is_not_reported(changes, capsys, tmp_path):
    closing_table(summary_of({**SLOW, **changes}), tmp_path)
    assert "loading images" not in capsys.readouterr().out


def test_a_process_that_waits_for_output_is_not_limited_by_loading(capsys, tmp_path):
    summary = summary_of(SLOW)
    summary["per_stage"].append({**STAGE, "stage": 1, "wait_output_fraction": 0.5})
    summary["test"]["accuracy"] *= 2
    closing_table(summary, tmp_path)
    assert "loading images" not in capsys.readouterr().out

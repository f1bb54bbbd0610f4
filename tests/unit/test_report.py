import dataclasses
import re
from io import StringIO

import pytest
from rich.console import Console

from dglpipe.cli.plan_table import print_plan
from dglpipe.data.batch_schedule import BatchSchedule
from dglpipe.monitoring.metrics import Line
from dglpipe.monitoring.progress import LiveProgress, PlainProgress
from dglpipe.partition.throughput_model import LoaderEstimate
from dglpipe.runtime import closing_table as closing_table_module
from dglpipe.runtime.closing_table import closing_table
from dglpipe.runtime.plan import plan
from harness import make_config

PLAN = BatchSchedule(8, 4, 4, 4, 1, 2, None, 1)
LINES = [
    Line("train", 1, 1, 0, 1.0, 0.25, 0.1, 100.0),
    Line("train", 1, 2, 0, 0.5, 0.5, 0.1, 100.0),
    Line("train", 1, 2, 1, 0.4, 0.625, 0.1, 100.0),
    Line("test", 1, 2, 0, 0.4, 0.75),
    Line("test", 1, 2, 1, 0.3, 0.8125),
    Line("test", 1, 2, "ensemble", None, 0.875),
]


def test_plain_lines_show_every_stage_once_an_epoch(capsys):
    display = PlainProgress(PLAN)
    for line in LINES:
        display.line(line)
    display.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert "stage 0: loss 0.5000 accuracy 50.00%" in lines[0]
    assert "ensemble: loss - accuracy 87.50%" in lines[-1]


def test_the_live_table_shows_loss_and_accuracy_of_every_stage():
    out = StringIO()
    display = LiveProgress(PLAN, 2, Console(file=out, force_terminal=True, width=100))
    for line in LINES:
        display.line(line)
    display.close()
    for text in ("0.5000", "62.50%", "75.00%", "81.25%", "2/4"):
        assert text in out.getvalue()


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
        (1, 1, "feeds all: raise data.workers (1 now)\n"),
        (0, 1, "feeds all: raise data.workers (0 now)\n"),
        (2, 1, "feeds all: its 2 processes (data.workers) have all cores of this machine\n"),
        (None, 2, "feeds all, by its process: give stage 0 fewer segments (pipeline.split)\n"),
        (None, 1, "feeds all, by its process\n"),
    ],
)
def test_loading_that_holds_up_the_chain_is_told(
    decoders, stages, help_, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(closing_table_module, "cores", lambda: 2)
    summary = summary_of(SLOW)
    if stages == 2:
        summary["per_stage"].append({**STAGE, "stage": 1, "process": 1})
        summary["test"]["accuracy"] *= 2
    closing_table(summary, tmp_path, decoders)
    text = capsys.readouterr().out
    assert f"loading images took 31% of the time of stage 0, which {help_}" in text
    assert "image_size" not in text, "another size is another problem"


@pytest.mark.parametrize(
    "changes",
    [
        {"loading_fraction": None},
        {"loading_fraction": 0.1},
        {"loading_fraction": 0.15, "wait_output_fraction": 0.5},
    ],
)
def test_loading_that_holds_up_nothing_is_not_told(changes, capsys, tmp_path):
    closing_table(summary_of({**SLOW, **changes}), tmp_path)
    assert "loading images" not in capsys.readouterr().out


def test_a_process_that_waits_behind_its_last_stage_is_not_held_up_by_loading(capsys, tmp_path):
    summary = summary_of(SLOW)
    summary["per_stage"].append({**STAGE, "stage": 1, "wait_output_fraction": 0.5})
    summary["test"]["accuracy"] *= 2
    closing_table(summary, tmp_path)
    assert "loading images" not in capsys.readouterr().out


@pytest.mark.parametrize("terminal", ["80", "120", None])
def test_a_plan_can_be_read_at_any_width(terminal, capsys, monkeypatch):
    if terminal is not None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", terminal)
    words = ("model=resnet152", "data=synthetic", "data.samples=64", "batch_size=16")
    words += ("pipeline.stages=4", "data.image_size=224")
    found = plan(make_config(*words))
    timed = [dataclasses.replace(one, seconds_per_step=1.23456) for one in found.stages]
    found = dataclasses.replace(found, stages=tuple(timed))
    print_plan(found)
    text = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    for j, stage in enumerate(found.stages):
        names, count = stage.segments, len(stage.segments)
        assert f"stage {j}: {names[0]} .. {names[-1]} ({count} segments)\n" in text
        for cell in (" 1234.56 ", f" {stage.parameters:,} ", f" {stage.memory_bytes / 2**20:.1f} "):
            assert cell in text
        if stage.output_shape:
            assert f" {'x'.join(map(str, stage.output_shape))} " in text


def lines_of_plan(found, capsys):
    """What is printed of a plan: the row of the loader as words, and all."""
    print_plan(found)
    text = capsys.readouterr().out
    (row,) = [line.split() for line in text.splitlines() if line.lstrip().startswith("loader ")]
    return row, text


def test_the_loader_is_a_row_of_the_plan(capsys):
    found = plan(make_config("pipeline.stages=2"))
    row, text = lines_of_plan(found, capsys)
    assert row == ["loader", "-", "-", "-", "-", "1x8x8"]
    assert f"bottleneck: {found.bottleneck}\n" in text
    loader = LoaderEstimate((1, 8, 8), 0.0125, 3)
    timed = [dataclasses.replace(one, seconds_per_step=0.002) for one in found.stages]
    found = dataclasses.replace(found, stages=tuple(timed), loader=loader, bottleneck="loader")
    row, text = lines_of_plan(found, capsys)
    assert row == ["loader", "-", "-", "-", "-", "12.50", "1x8x8"]
    assert "bottleneck: the loader, in 3 processes (data.workers)\n" in text
    alone = dataclasses.replace(found, loader=LoaderEstimate((1, 8, 8), 0.0125, 0))
    assert "the loader, in the process of stage 0\n" in lines_of_plan(alone, capsys)[1]
    crowd = dataclasses.replace(found, bottleneck="cores")
    assert "the cores of this machine: its processes share them" in lines_of_plan(crowd, capsys)[1]

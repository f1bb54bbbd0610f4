"""The table of `dglpipe plan`."""

from __future__ import annotations

import dataclasses
import re

import pytest

from dglpipe.cli.plan_table import print_plan
from dglpipe.partition.throughput_model import LoaderEstimate
from dglpipe.runtime.plan import plan_run as plan
from harness.configs import make_config


@pytest.fixture(scope="module")
def timed_plan():
    """The plan of ResNet-152 in four stages, with seconds per step."""
    words = ("model=resnet152", "data=synthetic", "data.samples=64", "batch_size=16")
    words += ("pipeline.stages=4", "data.image_size=224")
    found = plan(make_config(*words))
    timed = [dataclasses.replace(one, seconds_per_step=1.23456) for one in found.stages]
    return dataclasses.replace(found, stages=tuple(timed))


@pytest.mark.parametrize("terminal", ["80", "120", None])
def test_a_plan_can_be_read_at_any_width(terminal, timed_plan, capsys, monkeypatch):
    if terminal is not None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", terminal)
    found = timed_plan
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
    """The printed plan: the words of the loader's row, and the whole text."""
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
    assert "bottleneck: the loader, with 3 processes (data.workers)\n" in text
    alone = dataclasses.replace(found, loader=LoaderEstimate((1, 8, 8), 0.0125, 0))
    assert "the loader, in the process of stage 0\n" in lines_of_plan(alone, capsys)[1]
    crowd = dataclasses.replace(found, bottleneck="cores")
    assert (
        "the CPU cores, which all processes of this machine share"
        in lines_of_plan(crowd, capsys)[1]
    )

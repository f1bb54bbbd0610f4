"""What benchmarks/throughput makes of its measurements."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "throughput" / "throughput.py"


@pytest.fixture(scope="module")
def throughput():
    specification = importlib.util.spec_from_file_location("throughput", FILE)
    module = importlib.util.module_from_spec(specification)
    import sys

    sys.modules["throughput"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    yield module
    del sys.modules["throughput"]


def rates(module, pipeline):
    names = (module.BACKPROP, module.THREADS, module.DDP, module.LOOP, module.ONE, module.DGL)
    one = {name: [100.0, 110.0] for name in (*names, module.BOUND, module.PREDICTED)}
    return {**one, module.PIPELINE: [pipeline] * 2, module.PIPELINE_BOUND: [100.0, 100.0]}


def test_a_baseline_below_its_bound_gives_no_ratio(throughput):
    poor, fair = (throughput.ratios(rates(throughput, speed)) for speed in (89.0, 91.0))
    assert poor["DGL / best pipeline"] == "baseline underperforms"
    assert poor["DGL / bound of the best pipeline"] == pytest.approx([1.0, 1.1])
    assert fair["DGL / best pipeline"] == pytest.approx([100 / 91, 110 / 91])
    assert fair["best pipeline / its bound"] == pytest.approx([0.91, 0.91])


@pytest.mark.parametrize(
    ("schedule", "m", "seconds", "expected"),
    [
        ("gpipe", 4, [1.0, 2.0], 2.0 * 5 / 4),
        ("interleaved_1f1b", 4, [1.0, 1.0, 2.0, 1.0], 3.0 * 4.5 / 4),
        ("zbv", 4, [1.0, 1.0, 2.0, 1.5], 3.0),
    ],
)
def test_the_bound_of_a_pipeline(throughput, monkeypatch, schedule, m, seconds, expected):
    """Seconds of a step: the busiest process, and the bubbles of the schedule."""
    work = throughput.Work("cnn6", 128, 16, "fp32", 2, "auto")
    monkeypatch.setattr(throughput, "parts", lambda commands: [128 / seconds[int(commands[0][1])]])
    assert throughput.bound(work, schedule, m) == pytest.approx(128 / expected)


def test_micro_batches_that_a_schedule_does_not_take_are_left_out(throughput):
    work = throughput.Work("cnn6", 16, 16, "fp32", 4, "auto")
    taken = {
        schedule: [m for m in (2, 4, 8, 16) if throughput.fits(schedule, m, work)]
        for schedule in throughput.SCHEDULES
    }
    assert taken == {
        "gpipe": [2, 4, 8],
        "1f1b": [4, 8],
        "interleaved_1f1b": [4, 8],
        "zbv": [2, 4, 8],
    }


def test_every_way_is_a_command_that_is_accepted(throughput):
    from dglpipe.cli.compose import compose, take_apart
    from dglpipe.topology import plan_layout

    work = throughput.Work("narrow", 64, 16, "bf16", 2, "auto")
    ways = [work.local(1), work.local(2), [*work.words(1), "method=backprop"]]
    ways += [work.pipeline(schedule, 4) for schedule in throughput.SCHEDULES]
    for words in ways:
        config = compose(take_apart(words))
        plan_layout(config.pipeline, config.method, cores=2)

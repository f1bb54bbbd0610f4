"""Ratios, cuts and bounds of benchmarks/throughput."""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import replace

import pytest

from harness.paths import BENCHMARKS

FILE = BENCHMARKS / "throughput" / "throughput.py"


@pytest.fixture(scope="module")
def throughput():
    specification = importlib.util.spec_from_file_location("throughput", FILE)
    module = importlib.util.module_from_spec(specification)
    import sys

    sys.modules["throughput"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    yield module
    del sys.modules["throughput"]


def even(count):
    from dglpipe.partition.balance import SegmentCosts

    return SegmentCosts((1.0,) * count, (0.0,) * count, (0.0,) * (count - 1), ())


def rates(module, pipeline):
    names = (module.BACKPROP, module.THREADS, module.DDP, module.LOOP, module.ONE, module.DGL)
    one = {name: [100.0, 110.0] for name in (*names, module.BOUND, module.PREDICTED)}
    return {**one, module.PIPELINE: [pipeline] * 2, module.PIPELINE_BOUND: [100.0, 100.0]}


def test_a_baseline_below_its_bound_gives_no_ratio(throughput):
    poor, fair = (throughput.ratios(rates(throughput, speed), {}) for speed in (89.0, 91.0))
    assert poor["DGL / best pipeline"] == "baseline underperforms"
    assert poor["DGL / bound of the best pipeline"] == pytest.approx([1.0, 1.1])
    assert fair["DGL / best pipeline"] == pytest.approx([100 / 91, 110 / 91])
    assert fair["best pipeline / its bound"] == pytest.approx([0.91, 0.91])


def test_replicas_and_threads_have_the_bound_of_as_many_copies(throughput):
    many = {**rates(throughput, 91.0), throughput.DDP: [178.0, 190.0]}
    many[throughput.THREADS] = [191.0, 220.0]
    found = throughput.ratios(many, {throughput.DDP: 2, throughput.THREADS: 2})
    assert found["backprop, data-parallel / its bound"] == pytest.approx([0.89, 190 / 220])
    assert found["DGL / backprop, data-parallel"] == "baseline underperforms"
    assert found["DGL / backprop, all threads"] == pytest.approx([100 / 191, 0.5])


def test_every_method_is_cut_for_its_busiest_process(throughput):
    costs = throughput.SegmentCosts(
        segments=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        input_gradients=(0.0, 0.5, 0.5, 0.5, 0.5, 0.5),
        heads=(0.1, 0.1, 0.1, 0.1, 2.0),
        links=(),
    )
    work = throughput.Work("cnn6", 128, 16, "fp32", 2, "auto", costs)
    assert work.cut() == "[4]"  # 10.1 and 10.5
    assert throughput.pipeline_cut(costs, "gpipe", 2) == [0, 4]  # 10 and 11
    interleaved = throughput.pipeline_cut(costs, "interleaved_1f1b", 2)
    v = throughput.pipeline_cut(costs, "zbv", 2)
    backprop = costs.without_heads()
    every = [[0, *cut] for cut in itertools.combinations(range(1, 6), 3)]
    for bounds, pairs in ((interleaved, ((0, 2), (1, 3))), (v, ((0, 3), (1, 2)))):

        def busiest(cut, pairs=pairs):
            seconds = backprop.stages(cut)
            return max(seconds[one] + seconds[other] for one, other in pairs)

        assert busiest(bounds) == min(map(busiest, every))
    few = replace(work, processes=4)
    assert not throughput.fits("zbv", 4, few)  # 8 stages of 6 segments
    assert throughput.fits("gpipe", 4, few)


def test_a_pipeline_that_ran_once_is_not_taken_for_the_fastest(throughput):
    screened = {
        "gpipe, m=2": [90.0],
        "1f1b, m=4": [99.0, 80.0, 85.0],
        "zbv, m=4": [95.0, 84.0, 83.0],
    }
    assert throughput.fastest(screened) == "1f1b, m=4"
    assert throughput.fastest({}) is None


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
    work = throughput.Work("cnn6", 128, 16, "fp32", 2, "auto", even(6))
    monkeypatch.setattr(throughput, "parts", lambda commands: [128 / seconds[int(commands[0][1])]])
    words = work.pipeline(schedule, m)
    assert throughput.bound(words, batch=128, processes=2) == pytest.approx(128 / expected)


def test_processes_that_share_cores_are_bound_by_these(throughput, monkeypatch):
    """They fill each other's bubbles: six stages of a second on two cores take three."""
    work = throughput.Work("cnn6", 128, 16, "fp32", 6, "auto", even(6))
    monkeypatch.setattr(throughput, "parts", lambda commands: [128.0])
    monkeypatch.setattr(throughput, "cores", lambda: 2)
    words = work.pipeline("gpipe", 8)
    assert throughput.bound(words, batch=128, processes=6) == pytest.approx(128 / 3)
    monkeypatch.setattr(throughput, "backend", lambda processes: "nccl")
    assert throughput.bound(words, batch=128, processes=6) == pytest.approx(128 / (1 + 5 / 8))


def test_every_way_is_a_command_that_is_accepted(throughput):
    from dglpipe.cli.arguments import parse_arguments
    from dglpipe.cli.compose import compose
    from dglpipe.runtime.plan import plan_layout

    work = throughput.Work("narrow", 64, 16, "bf16", 2, "auto", even(6))
    ways = [work.local(1), work.local(2), [*work.words(1), "method=backprop"]]
    ways += [work.local(2, ["pipeline.processes=3", "pipeline.stages=3", "head=linear"])]
    ways += [work.pipeline(schedule, 4) for schedule in throughput.SCHEDULES]
    for words in ways:
        config = compose(parse_arguments(words))
        plan_layout(config.pipeline, config.method, cores=2)

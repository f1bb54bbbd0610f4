"""Ratios, cuts and bounds of benchmarks/throughput."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.throughput import pipelines, throughput
from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.partition.balance import SegmentCosts
from dglpipe.runtime.plan import plan_layout

EVEN = SegmentCosts((1.0,) * 6, (0.0,) * 6, (0.0,) * 5, ())
UNEVEN = SegmentCosts(
    segments=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
    input_gradients=(0.0, 0.5, 0.5, 0.5, 0.5, 0.5),
    heads=(0.1, 0.1, 0.1, 0.1, 2.0),
    links=(),
)


def workload(costs=EVEN, network="cnn6", processes=2):
    return throughput.Workload(network, 128, 16, "fp32", processes, "auto", costs)


def rates(pipeline=91.0, **others):
    same = {name: [100.0, 110.0] for name in throughput.WAYS}
    bound = {throughput.PIPELINE: [pipeline] * 2, throughput.PIPELINE_BOUND: [100.0, 100.0]}
    return {**same, **bound, **others}


def test_a_pipeline_below_its_bound_gives_no_ratio():
    poor, fair = (throughput.compare(rates(speed), {}) for speed in (89.0, 91.0))
    assert poor["DGL / best pipeline"] == "baseline underperforms"
    assert poor["DGL / bound of the best pipeline"] == pytest.approx([1.0, 1.1])
    assert fair["DGL / best pipeline"] == pytest.approx([100 / 91, 110 / 91])
    assert fair["best pipeline / its bound"] == pytest.approx([0.91, 0.91])


def test_replicas_and_threads_have_a_multiple_of_one_thread_as_bound():
    many = rates(**{throughput.DDP: [178.0, 190.0], throughput.THREADS: [191.0, 220.0]})
    found = throughput.compare(many, {throughput.DDP: 2, throughput.THREADS: 2})
    assert found["backprop, data-parallel / its bound"] == pytest.approx([0.89, 190 / 220])
    assert found["DGL / backprop, data-parallel"] == "baseline underperforms"
    assert found["DGL / backprop, all threads"] == pytest.approx([100 / 191, 0.5])


def test_every_method_is_cut_for_its_busiest_process():
    assert workload(UNEVEN).cut() == "[4]"  # 10.1 and 10.5
    assert pipelines.pipeline_cut(UNEVEN, "gpipe", 2) == [0, 4]  # 10 and 11
    backprop = UNEVEN.without_heads()
    every = [[0, *cut] for cut in itertools.combinations(range(1, 6), 3)]
    for schedule, pairs in {"interleaved_1f1b": ((0, 2), (1, 3)), "zbv": ((0, 3), (1, 2))}.items():

        def busiest(cut, pairs=pairs):
            seconds = backprop.stages(cut)
            return max(seconds[one] + seconds[other] for one, other in pairs)

        cut = pipelines.pipeline_cut(UNEVEN, schedule, 2)
        assert busiest(cut) == min(map(busiest, every))


def test_schedules_without_enough_segments_do_not_run():
    assert not pipelines.fits("zbv", 4, 128, 4, UNEVEN), "8 stages of 6 segments"
    assert pipelines.fits("gpipe", 4, 128, 4, UNEVEN)
    assert not pipelines.fits("1f1b", 2, 128, 4, UNEVEN)


def test_a_pipeline_that_ran_once_is_not_chosen():
    screened = {
        "gpipe, m=2": [90.0],
        "1f1b, m=4": [99.0, 80.0, 85.0],
        "zbv, m=4": [95.0, 84.0, 83.0],
    }
    assert throughput.fastest(screened) == "1f1b, m=4"
    assert throughput.fastest({}) is None


@pytest.mark.parametrize(
    ("schedule", "seconds", "expected"),
    [
        ("gpipe", [1.0, 2.0], 2.0 * 5 / 4),
        ("interleaved_1f1b", [1.0, 1.0, 2.0, 1.0], 3.0 * 4.5 / 4),
        ("zbv", [1.0, 1.0, 2.0, 1.5], 3.0),
    ],
)
def test_the_bound_of_a_pipeline(monkeypatch, schedule, seconds, expected):
    """Seconds of a step: the busiest process, and the bubbles of the schedule."""
    monkeypatch.setattr(
        pipelines, "run_parts", lambda commands: [128 / seconds[int(commands[0][1])]]
    )
    monkeypatch.setattr(pipelines, "cores", lambda: 2)
    words = workload().pipeline(schedule, 4)
    assert pipelines.bound(words, batch=128, processes=2) == pytest.approx(128 / expected)


def test_processes_that_share_cores_have_these_as_bound(monkeypatch):
    """They fill each other's bubbles: six stages of a second on two cores take three."""
    monkeypatch.setattr(pipelines, "run_parts", lambda commands: [128.0])
    monkeypatch.setattr(pipelines, "cores", lambda: 2)
    words = workload(processes=6).pipeline("gpipe", 8)
    assert pipelines.bound(words, batch=128, processes=6) == pytest.approx(128 / 3)
    monkeypatch.setattr(pipelines, "backend", lambda processes: "nccl")
    assert pipelines.bound(words, batch=128, processes=6) == pytest.approx(128 / (1 + 5 / 8))


def test_the_overrides_of_every_way_are_accepted():
    one = workload(network="narrow")
    variant = ["pipeline.processes=3", "pipeline.stages=3", "head=linear"]
    ways = [one.local(2, variant), one.pipeline("1f1b", 4), one.pipeline("zbv", 4)]
    for words in ways:
        config = compose(parse_arguments(words))
        plan_layout(config.pipeline, config.method, cores=2)

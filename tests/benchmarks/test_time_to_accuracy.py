"""Rates, relative times and marks of benchmarks/time_to_accuracy."""

from __future__ import annotations

import sys
from dataclasses import asdict

import pytest

from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.runtime.plan import plan_layout
from harness.paths import BENCHMARKS

sys.path.append(str(BENCHMARKS / "time_to_accuracy"))

import time_to_accuracy as benchmark


def outcome(rate, seed, seconds, accuracy=0.98):
    return benchmark.Outcome(rate, seed, seconds, accuracy, 100.0, 2**20)


def test_a_method_gets_the_rate_that_is_first_at_the_accuracy_with_most_seeds():
    runs = [outcome(0.1, 0, 4.0), outcome(0.1, 1, 5.0), outcome(0.1, 2, None)]
    runs += [outcome(0.3, 0, 1.0), outcome(0.3, 1, None), outcome(0.3, 2, None)]
    row = benchmark.row("DGL", runs)
    assert row["rate"] == 0.1
    assert row["runs"] == [asdict(one) for one in runs]


def test_times_are_relative_and_never_reached_is_said():
    rows = [
        benchmark.row("backprop, 1 thread", [outcome(0.1, seed, 2.0) for seed in range(3)]),
        benchmark.row("DGL", [outcome(0.1, 0, 1.0), outcome(0.1, 1, 3.0), outcome(0.1, 2, None)]),
    ]
    text = benchmark.table(rows, 0.97)
    assert "1.50 (0.50 .. inf)" in text
    assert "97.0%" in text


@pytest.mark.timeout(300)
def test_samples_seen_over_samples_a_second():
    found = benchmark.train(["experiment=debug", "pipeline.stages=2"], 0.05, 0, accuracy=0.0)
    assert found.seconds == pytest.approx(20 * 128 / found.samples_per_second)
    assert 0 <= found.accuracy <= 1


def test_a_way_below_its_bound_is_marked_and_an_edge_is_told():
    runs = [outcome(0.1, 0, 2.0), outcome(0.3, 0, 1.0), outcome(0.9, 0, 3.0)]
    names = [benchmark.ONE, benchmark.DDP, benchmark.PIPELINE, "DGL"]
    rows = [benchmark.row(name, runs) for name in names]
    benchmark.mark(rows, pipeline_bound=105.0)
    first, replicas, pipeline, local = benchmark.table(rows, 0.97).splitlines()[1:]
    assert "1.00 (1.00 .. 1.00)" in first and "tried" not in first
    assert "baseline underperforms" in replicas and "0.50 of its bound" in replicas
    assert "1.00 (1.00 .. 1.00)" in pipeline and "0.95 of its bound" in pipeline
    assert "bound" not in local
    edge = [benchmark.row(benchmark.ONE, runs[1:])]
    assert "rate 0.3 (the last that was tried)" in benchmark.table(edge, 0.97)


def test_every_way_is_a_command_that_is_accepted():
    costs = benchmark.SegmentCosts((1.0,) * 6, (0.1,) * 6, (0.1,) * 5, ())
    for words in benchmark.ways(costs, "zbv", 2).values():
        config = compose(parse_arguments(words))
        plan_layout(config.pipeline, config.method, cores=2)

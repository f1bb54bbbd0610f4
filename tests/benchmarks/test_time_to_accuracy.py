"""Rates, relative times and marks of benchmarks/time_to_accuracy."""

from __future__ import annotations

from benchmarks import common
from benchmarks.time_to_accuracy import time_to_accuracy as benchmark


def outcome(rate, seed, seconds, accuracy=0.98):
    return benchmark.Outcome(rate, seed, seconds, accuracy, 100.0, 2**20, [(2.0, accuracy)])


def test_a_method_keeps_the_rate_that_is_first_at_the_accuracy_with_most_seeds():
    runs = [outcome(0.1, 0, 4.0), outcome(0.1, 1, 5.0), outcome(0.1, 2, None)]
    runs += [outcome(0.3, 0, 1.0), outcome(0.3, 1, None), outcome(0.3, 2, None)]
    assert benchmark.row("DGL", runs)["rate"] == 0.1


def test_times_are_relative_and_an_accuracy_that_is_not_reached_takes_forever():
    rows = [
        benchmark.row(benchmark.ONE, [outcome(0.1, seed, 2.0) for seed in range(3)]),
        benchmark.row("DGL", [outcome(0.1, 0, 1.0), outcome(0.1, 1, 3.0), outcome(0.1, 2, None)]),
    ]
    text = benchmark.table(rows, 0.97)
    assert "1.50 (0.50-inf)" in text
    assert "97.0%" in text


def test_a_time_is_samples_seen_over_samples_a_second(monkeypatch):
    stages = [{"peak_memory_bytes": size} for size in (7, 5)]
    summary = {"throughput": {"samples_per_second": 50.0}, "per_stage": stages}
    summary["test"] = {"accuracy": [0.5, 0.9]}
    tests = [(10, 1, 0.6), (20, 0, 0.99), (20, 1, 0.8), (30, 1, 0.9)]
    metrics = [
        {"kind": "test", "step": step, "stage": stage, "accuracy": accuracy}
        for step, stage, accuracy in tests
    ]
    monkeypatch.setattr(common, "train", lambda words: common.Training(summary, metrics, []))
    monkeypatch.setattr(benchmark, "batch_size", lambda words: 5)
    found = benchmark.train([], 0.05, 0, accuracy=0.8)
    curve = [(1.0, 0.6), (2.0, 0.8), (3.0, 0.9)]
    assert found == benchmark.Outcome(0.05, 0, 20 * 5 / 50.0, 0.9, 50.0, 7, curve)
    assert benchmark.train([], 0.05, 0, accuracy=0.95).seconds is None


def test_the_picture_has_a_line_for_each_method(tmp_path):
    names = [benchmark.ONE, "DGL"]
    rows = [benchmark.row(name, [outcome(0.1, 0, 2.0)]) for name in names]
    benchmark.draw(rows, tmp_path / "times.png")
    assert (tmp_path / "times.png").stat().st_size > 5000


def test_a_way_below_its_bound_is_marked_and_the_last_rate_is_named(monkeypatch):
    monkeypatch.setattr(benchmark, "cores", lambda: 2)
    runs = [outcome(0.1, 0, 2.0), outcome(0.3, 0, 1.0), outcome(0.9, 0, 3.0)]
    names = [benchmark.ONE, benchmark.DDP, benchmark.PIPELINE, "DGL"]
    rows = [benchmark.row(name, runs) for name in names]
    benchmark.mark(rows, pipeline_bound=105.0)
    first, replicas, pipeline, local = benchmark.table(rows, 0.97).splitlines()[1:]
    assert "1.00 (1.00-1.00)" in first and "tried" not in first
    assert "baseline underperforms" in replicas and "0.50 of its bound" in replicas
    assert "1.00 (1.00-1.00)" in pipeline and "0.95 of its bound" in pipeline
    assert "bound" not in local
    edge = [benchmark.row(benchmark.ONE, runs[1:])]
    assert "rate 0.3 (the last that was tried)" in benchmark.table(edge, 0.97)


def test_the_ways_differ_in_method_cut_and_processes():
    costs = benchmark.SegmentCosts((1.0,) * 6, (0.1,) * 6, (0.1,) * 5, ())
    ways = benchmark.ways(costs, "1f1b", 2)
    assert "pipeline.split=[3]" in ways["DGL"]
    assert ways["sequential"] == ["method=sequential", *ways["DGL"]]
    assert ways[benchmark.MANY][0] == "pipeline.stages=6"
    assert "method.microbatches=2" in ways[benchmark.PIPELINE]

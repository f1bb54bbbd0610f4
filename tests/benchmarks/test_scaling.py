"""Bounds, marks and crossings of benchmarks/scaling.

Measured values have upper bounds only, because a busy machine slows them down.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scaling import asynchronous, scaling
from benchmarks.scaling.bounds import bound, bound_without_link
from benchmarks.scaling.case import PIPELINES, Case
from benchmarks.scaling.emulated import measure

LINKED = {"latency_ms": 50.0, "gbit": 0.1}


@pytest.mark.parametrize("way", ["dgl", "gpipe", "zbv"])
def test_a_step_takes_the_time_of_its_computing(way):
    """2 stages, 6 micro-batches: computing that is never slept would show."""
    value = measure(Case(way, 2, 200.0, 16, 4, microbatches=6))
    assert 0 < value < 1.02
    if way == "gpipe":
        assert value < 6 / 7 + 0.02, "a pipeline that waits for its last micro-batch has a bubble"


def test_a_message_that_takes_longer_than_a_stage_limits_the_chain():
    """As with `link.delay_ms`: a deeper link does not hide it."""
    case = Case("dgl", 2, 30.0, 16, 20, latency_ms=60.0, depth=3)
    assert bound(case) == pytest.approx(0.5)
    assert measure(case) < 0.52


def test_a_pipeline_over_a_slow_link_stays_below_its_bound():
    case = Case("1f1b", 2, 200.0, 16, 4, microbatches=4, latency_ms=40.0)
    assert bound(case) < 0.8 * bound_without_link(case)
    assert measure(case) < 1.02 * bound(case)


@pytest.mark.parametrize(("way", "stages", "m"), [("gpipe", 2, 4), ("1f1b", 4, 8)])
def test_the_bound_of_a_pipeline_is_its_bubble(way, stages, m):
    case = Case(way, stages, 100.0, 64, 10, microbatches=m)
    assert bound(case) == pytest.approx(m / (m + stages - 1))
    assert bound_without_link(replace(case, latency_ms=50.0)) == pytest.approx(bound(case))


def test_zero_bubble_has_none_from_2k_micro_batches_on():
    case = Case("zbv", 4, 100.0, 64, 10, microbatches=8)
    assert bound(case) == pytest.approx(1.0)
    assert 4 / 7 < bound(replace(case, microbatches=4)) < 0.9


def test_an_uneven_pipeline_waits_for_its_slowest_stage():
    """GPipe: every stage once, and the slowest m - 1 times more."""
    case = Case("gpipe", 4, 100.0, 64, 10, microbatches=8, uneven=3.0)
    assert bound(case) == pytest.approx(300 / ((600 + 7 * 300) / 8))


def test_bounds_with_links():
    """Two stages, one micro-batch: there and back again, 1 MiB in 84 ms."""
    message = 0.05 + 2**20 * 8 / 1e8
    case = Case("1f1b", 2, 100.0, 1024, 10, microbatches=2, **LINKED)
    single = replace(case, way="gpipe", microbatches=1)
    assert bound(single) == pytest.approx(0.1 / (0.2 + 2 * message))
    assert bound(case) < bound(replace(case, gbit=0.0)) < bound_without_link(case)
    chain = Case("dgl", 2, 100.0, 1024, 10, **LINKED)
    assert bound(chain) == pytest.approx(0.1 / message)
    assert bound(replace(chain, ms=200.0)) == 1.0


def test_buckets_hide_bandwidth_and_multiply_latency():
    case = Case("ddp", 4, 200.0, 64, 10, gradient_kib=4096)
    assert bound(case) == pytest.approx(1.0)
    one, four = (replace(case, latency_ms=50.0, buckets=count) for count in (1, 4))
    assert bound(one) == pytest.approx(0.2 / (0.2 + 6 * 0.05))
    assert bound(four) == pytest.approx(0.2 / (0.2 * (1 / 3 + 2 / 12) + 4 * 6 * 0.05))
    one, four = (replace(case, gbit=1.0, buckets=count) for count in (1, 4))
    assert bound(one) < bound(four)
    uneven = Case("ddp", 2, 100.0, 16, 4, uneven=3.0, gradient_kib=16)
    assert bound(uneven) == pytest.approx(1.5), "a replica takes the mean of the stages"


def test_every_way_uses_its_best_choice(monkeypatch):
    words = ["--ways", "dgl", *PIPELINES, "ddp", "--stages", "4", "--buckets", "1", "2"]
    (ways,) = scaling.settings(scaling.parse([*words, "--ms", "10"]))
    assert [cases[0].way for cases in ways] == ["dgl", *PIPELINES, "ddp"]
    assert [case.buckets for case in ways[-1]] == [1, 2]
    steps = []

    def prepared(case):
        steps.append(case.steps)
        return 1.0 / abs(case.microbatches - 9)

    monkeypatch.setattr(scaling, "measure", prepared)
    best, tried = scaling.choose(ways[2], 6)
    assert best == ways[2][1], "with all of its steps"
    assert list(tried) == [4, 8, 16]
    assert steps == [6, 6, 6]
    row = scaling.row(best, tried, [0.5])
    assert row["microbatches"] == 8 and "buckets" not in row
    assert scaling.choose(ways[0], 6) == (ways[0][0], {}), "a single case needs no trial"


def test_a_baseline_below_its_bound_is_marked_and_not_compared():
    case = Case("1f1b", 4, 100.0, 64, 10, microbatches=8)
    chain = Case("dgl", 4, 100.0, 64, 10)
    slow = replace(case, latency_ms=50.0)
    assert scaling.row(case, {}, [0.7])["mark"] is None
    assert scaling.row(case, {}, [0.6])["mark"] == "baseline underperforms"
    assert scaling.row(chain, {}, [0.6])["mark"] is None, "it is not a baseline"
    assert scaling.row(slow, {}, [0.95 * bound(slow)])["mark"] is None, "the link is its bound"

    rows = [scaling.row(replace(chain, latency_ms=ms), {}, [0.3]) for ms in (0.0, 50.0)]
    pipelines = [scaling.row(case, {}, [0.7 * bound(case)]), scaling.row(slow, {}, [bound(slow)])]
    assert scaling.crossings([*rows, *pipelines], "latency_ms") == []
    pipelines[0]["mark"] = None
    (line,) = scaling.crossings([*rows, *pipelines], "latency_ms")
    assert line.startswith("1f1b is ahead up to latency_ms 0, dgl from 50 on")
    rows = [{**row, "bound": 0.3} for row in rows]
    assert scaling.crossings([*rows, *pipelines], "latency_ms", "bound") == [line]


def test_ways_are_compared_with_different_choices():
    cases = {
        Case("1f1b", 4, 50.0, 64, 10, gbit=1.0, microbatches=4): 0.5,
        Case("1f1b", 4, 50.0, 64, 10, gbit=10.0, microbatches=8): 0.6,
        Case("ddp", 4, 50.0, 64, 10, gbit=1.0, buckets=1): 0.4,
        Case("ddp", 4, 50.0, 64, 10, gbit=10.0, buckets=4): 0.9,
    }
    rows = [{**scaling.row(case, {}, [value]), "mark": None} for case, value in cases.items()]
    (line,) = scaling.crossings(rows, "gbit")
    assert line.startswith("1f1b is ahead up to gbit 1, ddp from 10 on (stages 4, ms 50")


def test_every_batch_of_an_asynchronous_link_is_accounted_for():
    case = asynchronous.Case(2, 5.0, 0.5, "overwrite", (1.0, 2.0))
    (counts,) = [one["staleness"] for one in asynchronous.measure(case) if one["stage"] == 1]
    read = sum(count for reads, count in counts["reads_by_entry"].items() if reads != "0")
    assert counts["received"] == read + counts["overwritten_unread"] + counts["left_unread"]
    assert counts["updates"] > 0

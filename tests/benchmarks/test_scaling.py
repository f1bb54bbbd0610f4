"""Bounds, marks and comparisons of benchmarks/scaling.

Measured values have upper bounds only: a busy machine slows them down.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from harness.paths import BENCHMARKS

sys.path.append(str(BENCHMARKS / "scaling"))

import scaling
from bounds import bound, bound_without_link
from emulated import PIPELINES, WAYS, Case


@pytest.mark.parametrize("way", list(WAYS))
def test_a_way_takes_no_less_than_its_work(way):
    """2 stages, 6 micro-batches: work that is never slept would show."""
    value = scaling.measure(Case(way, 2, 300.0, 16, 4, microbatches=6))
    assert 0 < value < 1.02
    if way == "gpipe":
        assert value < 6 / 7 + 0.02, "a pipeline that waits for its last micro-batch has a bubble"


def test_a_message_under_way_keeps_the_chain_waiting_past_the_time_of_a_stage():
    """As with `link.delay_ms`: a deeper link does not hide it."""
    case = Case("dgl", 2, 30.0, 16, 20, latency_ms=60.0, depth=3)
    assert bound(case) == pytest.approx(0.5)
    assert scaling.measure(case) < 0.52


@pytest.mark.parametrize("way", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("stages", "m"), [(2, 4), (4, 8), (16, 16)])
def test_the_bound_of_a_pipeline_is_its_bubble(way, stages, m):
    case = Case(way, stages, 100.0, 64, 10, microbatches=m)
    assert bound(case) == pytest.approx(m / (m + stages - 1))
    assert bound_without_link(replace(case, latency_ms=50.0)) == pytest.approx(bound(case))


def test_the_bound_of_zero_bubble_is_its_own():
    case = Case("zbv", 4, 100.0, 64, 10, microbatches=8)
    assert bound(case) == pytest.approx(1.0)
    assert 4 / 7 < bound(replace(case, microbatches=4)) < 0.9


def test_an_uneven_pipeline_waits_for_its_slowest_stage_once_it_is_full():
    """GPipe: every stage once, and the slowest m - 1 times more."""
    case = Case("gpipe", 4, 100.0, 64, 10, microbatches=8, uneven=3.0)
    assert bound(case) == pytest.approx(300 / ((600 + 7 * 300) / 8))


def test_bounds_with_links():
    """Two stages, one micro-batch: there and back again, 1 MiB in 84 ms."""
    slow = {"latency_ms": 50.0, "gbit": 0.1}
    message = 0.05 + 2**20 * 8 / 1e8
    case = Case("1f1b", 2, 100.0, 1024, 10, microbatches=2, **slow)
    assert bound(replace(case, way="gpipe", microbatches=1)) == pytest.approx(
        0.1 / (0.2 + 2 * message)
    )
    assert bound(case) < bound(replace(case, gbit=0.0)) < bound_without_link(case)
    chain = Case("dgl", 2, 100.0, 1024, 10, **slow)
    assert bound(chain) == pytest.approx(0.1 / message)
    assert bound(replace(chain, ms=200.0)) == 1.0


def test_what_a_pipeline_takes_over_a_slow_link_is_what_its_bound_says():
    case = Case("1f1b", 2, 200.0, 16, 4, microbatches=4, latency_ms=40.0)
    value = scaling.measure(case)
    assert bound(case) < 0.8 * bound_without_link(case)
    assert value < 1.02 * bound(case)


def test_buckets_hide_bandwidth_and_multiply_latency():
    case = Case("ddp", 4, 200.0, 64, 10, gradient_kib=4096)
    assert bound(case) == pytest.approx(1.0)
    one, four = (replace(case, latency_ms=50.0, buckets=count) for count in (1, 4))
    assert bound(one) == pytest.approx(0.2 / (0.2 + 6 * 0.05))
    assert bound(four) == pytest.approx(0.2 / (0.2 * (1 / 3 + 2 / 12) + 4 * 6 * 0.05))
    one, four = (replace(case, gbit=1.0, buckets=count) for count in (1, 4))
    assert bound(one) < bound(four)


def test_a_replica_takes_the_mean_of_uneven_stages():
    case = Case("ddp", 2, 100.0, 16, 4, uneven=3.0, gradient_kib=16)
    assert case.mean == pytest.approx(0.2)
    assert bound(case) == pytest.approx(1.5), "no stage of it is waited for"
    assert scaling.measure(case) < 1.53


def setting(*words):
    (one,) = scaling.settings(scaling.parse([*words, "--ms", "10"]))
    return one


def test_every_peer_tries_what_it_may_choose(monkeypatch):
    ways = setting("--ways", "dgl", *PIPELINES, "ddp", "--stages", "4", "--buckets", "1", "2")
    assert [those[0].way for those in ways] == ["dgl", *PIPELINES, "ddp"]
    assert [case.microbatches for case in ways[2]] == [4, 8, 16]
    assert [case.buckets for case in ways[-1]] == [1, 2]
    assert len(ways[0]) == 1

    seen = []

    def measure(case):
        seen.append(case)
        return 1.0 / abs(case.microbatches - 9)

    monkeypatch.setattr(scaling, "measure", measure)
    best, tried = scaling.choose(ways[2], 6)
    assert best == ways[2][1], "with all of its steps"
    assert list(tried) == [4, 8, 16]
    assert {case.steps for case in seen} == {6}
    assert scaling.row(best, tried, [0.5])["microbatches"] == 8
    assert "microbatches 8" in scaling.told(scaling.row(best, tried, [0.5]))
    assert scaling.choose(ways[0], 6) == (ways[0][0], {}), "nothing to choose, nothing run"
    assert len(seen) == 3


def test_a_baseline_below_its_bound_is_marked_and_not_compared():
    case = Case("1f1b", 4, 100.0, 64, 10, microbatches=8)
    assert scaling.row(case, {}, [0.7])["mark"] is None
    assert scaling.row(case, {}, [0.6])["mark"] == "baseline underperforms"
    assert "baseline underperforms" in scaling.told(scaling.row(case, {}, [0.6]))
    chain = Case("dgl", 4, 100.0, 64, 10)
    assert scaling.row(chain, {}, [0.6])["mark"] is None, "it is not a baseline"
    slow = replace(case, latency_ms=50.0)
    assert scaling.row(slow, {}, [0.95 * bound(slow)])["mark"] is None, "the link is its bound"

    rows = [scaling.row(replace(chain, latency_ms=ms), {}, [0.3]) for ms in (0.0, 50.0)]
    peers = [scaling.row(replace(case, latency_ms=ms), {}, [0.7 * bound(case)]) for ms in (0.0,)]
    peers.append(scaling.row(slow, {}, [bound(slow)]))
    assert peers[0]["mark"] and not peers[1]["mark"]
    assert scaling.crossings([*rows, *peers], "latency_ms") == []
    peers[0]["mark"] = None
    (line,) = scaling.crossings([*rows, *peers], "latency_ms")
    assert line.startswith("1f1b is ahead up to latency_ms 0, dgl from 50 on")
    rows = [{**row, "bound": 0.3} for row in rows]
    assert scaling.crossings([*rows, *peers], "latency_ms", "bound") == [line]


def test_ways_are_compared_whatever_they_chose():
    cases = [
        Case("1f1b", 4, 50.0, 64, 10, gbit=1.0, microbatches=4),
        Case("1f1b", 4, 50.0, 64, 10, gbit=10.0, microbatches=8),
        Case("ddp", 4, 50.0, 64, 10, gbit=1.0, buckets=1),
        Case("ddp", 4, 50.0, 64, 10, gbit=10.0, buckets=4),
    ]
    rows = [
        {**scaling.row(case, {}, [value]), "mark": None}
        for case, value in zip(cases, (0.5, 0.6, 0.4, 0.9), strict=True)
    ]
    (line,) = scaling.crossings(rows, "gbit")
    assert line.startswith("1f1b is ahead up to gbit 1, ddp from 10 on (stages 4, ms 50")

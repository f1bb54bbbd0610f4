"""Age of the entries that a stage read."""

from __future__ import annotations

from collections import Counter

from dglpipe.methods.dgl_async.replay import Replay
from dglpipe.methods.dgl_async.staleness import ages, draw_staleness, summarize


def test_an_age_counts_outputs_until_the_read():
    made = [10, 20, 30, 40]  # outputs 1, 2, 3, 4
    assert ages(made, [25, 25, 39, 41], [1, 2, 2, 4]) == Counter({0: 2, 1: 2})
    assert ages(made, [99], [1]) == Counter({3: 1})


def test_clocks_of_two_machines_make_no_age_below_zero():
    assert ages([10, 20], [15], [2]) == Counter({0: 1})


def test_outputs_of_an_earlier_process_have_no_age():
    """Outputs 1 to 5 are of the earlier process; 6 and 7 were made at 10 and 20."""
    assert ages([10, 20], [15, 25, 25, 25], [5, 5, 6, 7], earlier=5) == Counter({1: 1, 0: 1})


def test_reads_without_an_age(tmp_path):
    """The stage below was started again after the last read; another stage has ages."""
    replay = Replay(2)
    replay.write("batch")
    for _ in range(3):
        replay.read()
    replay.usage.ages = Counter({2: 1})
    other = summarize(replay, 3, 3)
    assert (other["reads"], other["mean_age"]) == (3, 2.0), "the mean of the ages that are known"
    replay.usage.ages = Counter()
    entry = summarize(replay, 3, 3)
    assert (entry["reads"], entry["mean_age"], entry["ages"]) == (3, None, {})
    draw_staleness([summarize(None, 3, 3), entry], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    draw_staleness([summarize(None, 3, 3), entry, other], tmp_path / "some.png")
    assert (tmp_path / "some.png").exists()

"""Age of the entries that a stage read."""

from __future__ import annotations

from collections import Counter

from dglpipe.methods.dgl_async.staleness import ages


def test_an_age_counts_outputs_until_the_read():
    made = [10, 20, 30, 40]  # outputs 1, 2, 3, 4
    assert ages(made, [25, 25, 39, 41], [1, 2, 2, 4]) == Counter({0: 2, 1: 2})
    assert ages(made, [99], [1]) == Counter({3: 1})


def test_clocks_of_two_machines_make_no_age_below_zero():
    assert ages([10, 20], [15], [2]) == Counter({0: 1})

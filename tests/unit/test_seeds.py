"""Seeds are stable numbers: a change here would change every run."""

from __future__ import annotations

import subprocess
import sys

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dglpipe.seeds import Seeds, derive

PARTS = st.lists(st.integers(-20, 20) | st.text("a1:-", max_size=3), max_size=3)
"""Texts of few letters, so that different parts are similar."""


def test_a_known_value_never_changes():
    assert derive(0, "network") == 6475120958452089826
    assert derive(7, "step", 1, 0, 12) == 8455631756881951538


def test_another_process_derives_the_same():
    code = "from dglpipe.seeds import derive; print(derive(3, 'head', 2))"
    environment = {"PYTHONHASHSEED": "123", "PATH": ""}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env=environment
    )
    assert int(out.stdout) == derive(3, "head", 2)


@given(st.integers(0, 3), PARTS, st.integers(0, 3), PARTS)
@settings(max_examples=50, deadline=None)
def test_only_equal_parts_give_equal_seeds(seed, parts, other_seed, other_parts):
    same = (seed, parts) == (other_seed, other_parts)
    assert (derive(seed, *parts) == derive(other_seed, *other_parts)) == same


@given(st.integers(0, 3), PARTS, st.lists(st.integers(0, 99), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_seeds_of_a_stream_are_the_derived_ones(seed, parts, last):
    seeds = Seeds(seed, *parts)
    assert [seeds.at(n) for n in last] == [derive(seed, *parts, n) for n in last]


def test_type_and_borders_of_parts_count():
    seeds = {derive(1, "2"), derive(1, 2), derive(12), derive(1, "2", ""), derive(1, "i1:2")}
    assert len(seeds) == 5


@given(st.integers(0, 2**32), PARTS)
@settings(max_examples=30, deadline=None)
def test_every_generator_takes_it(seed, parts):
    derived = derive(seed, *parts)
    assert 0 <= derived < 2**63
    torch.Generator().manual_seed(derived)

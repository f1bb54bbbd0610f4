"""The best cut, compared with all cuts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dglpipe.partition.balance import SegmentCosts, balanced, least, stage_costs


def every_cut(count, stages):
    return [[0, *rest] for rest in itertools.combinations(range(1, count), stages - 1)]


@st.composite
def problems(draw):
    count = draw(st.integers(1, 8))
    stages = draw(st.integers(1, count))
    numbers = st.lists(st.integers(0, 9), min_size=count, max_size=count)
    kinds = []
    for _ in range(draw(st.integers(1, stages))):
        segments, gradients = draw(numbers), draw(numbers)
        costs = SegmentCosts(
            segments=tuple(a + b for a, b in zip(segments, gradients, strict=True)),
            input_gradients=tuple(gradients),
            heads=tuple(draw(numbers)[1:]),
            links=tuple(draw(numbers)[1:]),
        )
        kinds.append(costs)
    return [draw(st.sampled_from(kinds)) for _ in range(stages)], draw(st.integers(1, count))


@given(problems())
@settings(max_examples=300, deadline=None)
def test_no_cut_is_better(problem):
    costs, longest = problem
    count, stages = len(costs[0].segments), len(costs)

    def fits(j, first, end):
        return end - first <= longest + j % 2

    def value(bounds):
        links = [own.links[at - 1] for own, at in zip(costs, bounds[1:], strict=False)]
        return max(stage_costs(costs, bounds)), sum(links)

    allowed = [
        bounds
        for bounds in every_cut(count, stages)
        if all(fits(j, *span) for j, span in enumerate(itertools.pairwise([*bounds, count])))
    ]
    found = balanced(costs, fits)
    if not allowed:
        assert found is None
    else:
        assert found in allowed
        assert value(found) == min(map(value, allowed))


def test_a_head_and_the_gradient_of_the_input_count():
    """10 10 10 10: the head increases the cost of stage 0, the missing gradient reduces that of
    stage 1."""
    even = SegmentCosts((10, 10, 10, 10), (0, 0, 0, 0), (0, 0, 0), (1, 1, 1))
    assert balanced([even, even]) == [0, 2]
    heavy = SegmentCosts((10, 10, 10, 10), (0, 0, 0, 0), (11, 11, 11), (1, 1, 1))
    assert balanced([heavy, heavy]) == [0, 1]
    free = SegmentCosts((10, 10, 10, 10), (0, 9, 0, 0), (0, 0, 0), (1, 1, 1))
    assert free.stages([0, 1]) == [10, 21]


def test_every_stage_has_values_of_its_own():
    """A segment costs stage 1 three times what it costs the others."""
    assert least(lambda j, first, end: (end - first) * (3 if j == 1 else 1), 7, 3) == [0, 3, 4]


@pytest.mark.parametrize("links", [(5, 1, 5), (1, 5, 5), (5, 5, 1)])
def test_among_equal_cuts_the_smaller_message_wins(links):
    costs = SegmentCosts((0, 9, 0, 0), (0, 0, 0, 0), (0, 0, 0), links)
    assert balanced([costs, costs]) == [0, 1 + links.index(1)]

"""The cut that minimises the cost of the slowest stage, by dynamic programming; pure functions.

Cost of a stage of segments a..b-1: forward and backward of its segments, minus the gradient of
the input of segment a, which local learning does not compute, plus the auxiliary modules that
read the output of segment b-1. The last stage has no auxiliary modules.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

Fits = Callable[[int, int, int], bool]
"""(j, first, end) -> whether stage j may consist of segments first..end-1."""


@dataclass(frozen=True, slots=True)
class SegmentCosts:
    """Costs of the segments of a network: FLOPs per sample, or seconds per step.

    Attributes:
        segments: cost of forward and backward by segment, with the gradient of the input.
        input_gradients: cost of only the gradient of the input, by segment.
        heads: cost of the auxiliary modules of the cut before segment 1, 2, ...; infinite where
            no cut is possible.
        links: bytes per row that cross the same cuts.
    """

    segments: tuple[float, ...]
    input_gradients: tuple[float, ...]
    heads: tuple[float, ...]
    links: tuple[int, ...]

    def without_heads(self) -> SegmentCosts:
        """Costs of backprop, if these are the costs of a method with heads."""
        return replace(self.with_input_gradients(), heads=(0.0,) * len(self.heads))

    def with_input_gradients(self) -> SegmentCosts:
        """Costs of methods that compute all gradients except the gradient of the images."""
        omitted = (self.input_gradients[0], *(0.0,) * len(self.heads))
        return SegmentCosts(self.segments, omitted, self.heads, self.links)

    def stage(self, first: int, end: int) -> float:
        """Cost of a stage of segments `first` to `end` - 1 with its auxiliary modules."""
        head = self.heads[end - 1] if end < len(self.segments) else 0
        return math.fsum(self.segments[first:end]) - self.input_gradients[first] + head

    def stages(self, bounds: Sequence[int]) -> list[float]:
        """Costs of all stages of a cut if all stages have equal settings."""
        return stage_costs([self] * len(bounds), bounds)


def stage_costs(costs: Sequence[SegmentCosts], bounds: Sequence[int]) -> list[float]:
    """Cost of every stage of a cut.

    Args:
        costs: costs by stage.
        bounds: first segment of every stage.
    """
    spans = itertools.pairwise([*bounds, len(costs[0].segments)])
    return [one.stage(*span) for one, span in zip(costs, spans, strict=True)]


def _anything(_stage: int, _first: int, _end: int) -> bool:
    return True


def balanced(costs: Sequence[SegmentCosts], fits: Fits = _anything) -> list[int] | None:
    """First segment of every stage of the best cut. Among equally good cuts the one with the
    fewest bytes on its links wins.

    Args:
        costs: costs by stage; at most as many stages as segments.
        fits: which segments each stage may consist of.

    Returns:
        None if no cut fits.
    """
    count = len(costs[0].segments)
    spans = _spans(count, len(costs), fits)
    # Stages often share their costs: compute the table of each kind once.
    every = set().union(*spans)
    known = {own: {span: own.stage(*span) for span in every} for own in set(costs)}
    tables = [
        {span: known[own][span] for span in may} for own, may in zip(costs, spans, strict=True)
    ]
    slowest = _best(tables, count, max)
    if slowest is None:
        return None
    limit = max(table[span] for table, span in zip(tables, slowest, strict=True))
    links = [
        {
            (first, end): own.links[end - 1] if end < count else 0
            for (first, end), value in table.items()
            if value <= limit
        }
        for own, table in zip(costs, tables, strict=True)
    ]
    lightest = _best(links, count, lambda one, other: one + other)
    assert lightest is not None
    return [first for first, _ in lightest]


def least(
    values: Callable[[int, int, int], float], count: int, stages: int, may: Fits = _anything
) -> list[int]:
    """First segment of every stage of the cut whose largest value is smallest.

    Args:
        values: (j, first, end) -> value of stage j of segments first..end-1.
        count: number of segments.
        may: which segments each stage may consist of; must allow at least one cut.
    """
    spans = _spans(count, stages, may)
    tables = [{span: values(j, *span) for span in own} for j, own in enumerate(spans)]
    best = _best(tables, count, max)
    assert best is not None, "there are at most as many stages as segments"
    return [first for first, _ in best]


def _spans(count: int, stages: int, fits: Fits) -> list[list[tuple[int, int]]]:
    """Spans (first, end) of segments that each stage may have."""
    spans = list(itertools.combinations(range(count + 1), 2))
    return [[span for span in spans if fits(j, *span)] for j in range(stages)]


def _best(
    tables: Sequence[Mapping[tuple[int, int], float]],
    count: int,
    join: Callable[[float, float], float],
) -> list[tuple[int, int]] | None:
    """Consecutive spans from 0 to `count`, one per table, with the smallest joined value."""
    best: dict[int, tuple[float, list[tuple[int, int]]]] = {0: (0, [])}
    for table in tables:
        following: dict[int, tuple[float, list[tuple[int, int]]]] = {}
        for (first, end), value in table.items():
            if first in best:
                joined = join(best[first][0], value)
                if end not in following or joined < following[end][0]:
                    following[end] = joined, [*best[first][1], (first, end)]
        best = following
    return best[count][1] if count in best else None

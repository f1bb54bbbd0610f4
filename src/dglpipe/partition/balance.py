"""The contiguous cut whose slowest stage is fastest. Pure; exact, by dynamic programming.

Cost of a stage of segments a..b-1: what its segments cost in forward and backward, less the
gradient of its input, which nobody asks for, and its head, which reads what crosses the cut
in front of segment b (the last stage has none).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Fits = Callable[[int, int, int], bool]
"""Whether stage j of a cut may have segments first..end-1: (j, first, end)."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What the pieces of a network cost a sample, in FLOPs or in seconds.

    Attributes:
        segments: forward and backward of every segment, the gradient of its input included.
        input_gradients: that gradient alone.
        heads: of the cut in front of each segment but segment 0, the head that reads there.
        links: of the same cuts, the bytes that cross.
    """

    segments: tuple[float, ...]
    input_gradients: tuple[float, ...]
    heads: tuple[float, ...]
    links: tuple[int, ...]

    def without_heads(self) -> Costs:
        """The same of backprop: no heads, and only the images need no gradient."""
        nothing = (0.0,) * len(self.heads)
        return Costs(self.segments, (self.input_gradients[0], *nothing), nothing, self.links)

    def stage(self, first: int, end: int) -> float:
        """A stage of segments `first` to `end` - 1, with its head."""
        head = self.heads[end - 1] if end < len(self.segments) else 0
        return math.fsum(self.segments[first:end]) - self.input_gradients[first] + head

    def stages(self, bounds: Sequence[int]) -> list[float]:
        """Every stage of a cut, all with these costs."""
        return stage_costs([self] * len(bounds), bounds)


def stage_costs(costs: Sequence[Costs], bounds: Sequence[int]) -> list[float]:
    """Every stage of a cut.

    Args:
        costs: of stage j, by j.
    """
    spans = itertools.pairwise([*bounds, len(costs[0].segments)])
    return [one.stage(*span) for one, span in zip(costs, spans, strict=True)]


def _anything(_stage: int, _first: int, _end: int) -> bool:
    return True


def balanced(costs: Sequence[Costs], fits: Fits = _anything) -> list[int] | None:
    """First segment of every stage of the best cut; of equally good ones, that with the
    fewest bytes on its links.

    Args:
        costs: of stage j, by j; at most as many stages as there are segments.
        fits: which segments each stage may have.

    Returns:
        None if no cut fits.
    """
    count = len(costs[0].segments)
    spans = _spans(count, len(costs), fits)
    # Many stages have the same costs.
    every = set().union(*spans)
    known = {own: {span: own.stage(*span) for span in every} for own in set(costs)}
    works = [known[own] for own in costs]
    tables = [{span: work[span] for span in may} for work, may in zip(works, spans, strict=True)]
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
        values: of stage j of segments first..end-1, by (j, first, end).
        count: segments.
        may: which segments each stage may have; some cut must be left.
    """
    spans = _spans(count, stages, may)
    tables = [{span: values(j, *span) for span in own} for j, own in enumerate(spans)]
    best = _best(tables, count, max)
    assert best is not None, "there are at most as many stages as segments"
    return [first for first, _ in best]


def _spans(count: int, stages: int, fits: Fits) -> list[list[tuple[int, int]]]:
    """Those that each stage may have."""
    spans = list(itertools.combinations(range(count + 1), 2))
    return [[span for span in spans if fits(j, *span)] for j in range(stages)]


def _best(
    tables: Sequence[Mapping[tuple[int, int], float]],
    count: int,
    join: Callable[[float, float], float],
) -> list[tuple[int, int]] | None:
    """The chain of spans, one of each table, from 0 to `count` with the smallest joined value."""
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

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

Fits = Callable[[int, int], bool]


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

    def flowing_back(self) -> Costs:
        """The same of backprop: no heads, and only the images need no gradient."""
        nothing = (0.0,) * len(self.heads)
        return Costs(self.segments, (self.input_gradients[0], *nothing), nothing, self.links)

    def stage(self, first: int, end: int) -> float:
        """A stage of segments `first` to `end` - 1, with its head."""
        head = self.heads[end - 1] if end < len(self.segments) else 0
        return math.fsum(self.segments[first:end]) - self.input_gradients[first] + head

    def stages(self, bounds: Sequence[int]) -> list[float]:
        """Every stage of a cut."""
        ends = [*bounds[1:], len(self.segments)]
        return [self.stage(first, end) for first, end in zip(bounds, ends, strict=True)]


def balanced(costs: Costs, stages: int, fits: Fits = lambda first, end: True) -> list[int] | None:
    """First segment of every stage of the best cut; of equally good ones, that with the
    fewest bytes on its links.

    Args:
        stages: K, at most as many as there are segments.
        fits: whether a stage of segments first..end-1 may be.

    Returns:
        None if no cut fits.
    """
    count = len(costs.segments)
    spans = [
        (first, end)
        for first, end in itertools.combinations(range(count + 1), 2)
        if fits(first, end)
    ]
    table = {span: costs.stage(*span) for span in spans}
    slowest = _best(table, count, stages, max)
    if slowest is None:
        return None
    limit = max(table[span] for span in slowest)
    links = {
        (first, end): costs.links[end - 1] if end < count else 0
        for (first, end), cost in table.items()
        if cost <= limit
    }
    lightest = _best(links, count, stages, lambda one, other: one + other)
    assert lightest is not None
    return [first for first, _ in lightest]


def least(
    values: Callable[[int, int], float],
    count: int,
    stages: int,
    may: Fits = lambda first, end: True,
) -> list[int]:
    """First segment of every stage of the cut whose largest value is smallest.

    Args:
        values: of a stage of segments first..end-1.
        count: segments.
        may: whether there may be such a stage; some cut must be left.
    """
    spans = [span for span in itertools.combinations(range(count + 1), 2) if may(*span)]
    best = _best({span: values(*span) for span in spans}, count, stages, max)
    assert best is not None, "there are at most as many stages as segments"
    return [first for first, _ in best]


def _best(
    table: Mapping[tuple[int, int], float],
    count: int,
    stages: int,
    join: Callable[[float, float], float],
) -> list[tuple[int, int]] | None:
    """The chain of `stages` spans from 0 to `count` with the smallest joined value."""
    best: dict[int, tuple[float, list[tuple[int, int]]]] = {0: (0, [])}
    for _ in range(stages):
        following: dict[int, tuple[float, list[tuple[int, int]]]] = {}
        for (first, end), value in table.items():
            if first in best:
                joined = join(best[first][0], value)
                if end not in following or joined < following[end][0]:
                    following[end] = joined, [*best[first][1], (first, end)]
        best = following
    return best[count][1] if count in best else None
